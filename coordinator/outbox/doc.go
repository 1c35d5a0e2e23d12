// Package outbox publishes events in the transaction of the rows they tell of, and relays them to sinks.
package outbox
