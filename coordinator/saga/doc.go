// Package saga coordinates work that spans services and time: steps that commit on their own, and compensations that undo them.
package saga
