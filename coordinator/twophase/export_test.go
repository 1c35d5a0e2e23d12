package twophase

import (
	"context"
	"time"
)

// Failing gives a Config whose manager calls f at each point between two steps of a transaction.
func Failing(conf Config, f func(point string)) Config {
	conf.failpoint = f
	return conf
}

// BranchOf names the branch of t at a participant.
func BranchOf(t *Tx, participant string) BranchID { return t.id.at(participant) }

// MySQLKeeps tells of a version whether it keeps what was prepared.
func MySQLKeeps(version string) bool { return mysqlKeeps(version) }

// CheckMySQL checks what a server says of its settings.
func CheckMySQL(variables map[string]string) []Finding {
	return MySQL("south", nil).checkServer(mysqlFacts{variables: variables, database: "bank"})
}

// Behind has m take the clock of the coordinator's database, as far as it has asked, to be behind.
func Behind(m *Manager, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.home.at = m.home.at.Add(-d)
}

// Enlist begins the branch of t at a participant.
func Enlist(ctx context.Context, t *Tx, p Participant) (Branch, error) { return t.enlist(ctx, p) }

// Waiting is how many decisions wait for their turn.
func Waiting(m *Manager) int {
	m.decider.mu.Lock()
	defer m.decider.mu.Unlock()
	return len(m.decider.waiting)
}
