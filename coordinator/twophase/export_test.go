package twophase

import "context"

// Failing gives a Config whose manager calls f at each point between two steps of a transaction.
func Failing(conf Config, f func(point string)) Config {
	conf.failpoint = f
	return conf
}

// BranchOf names the branch of t at a participant.
func BranchOf(t *Tx, participant string) BranchID { return t.id.at(participant) }

// MySQLKeeps tells of a version whether it keeps what was prepared.
func MySQLKeeps(version string) bool { return mysqlKeeps(version) }

// Enlist begins the branch of t at a participant.
func Enlist(ctx context.Context, t *Tx, p Participant) (Branch, error) { return t.enlist(ctx, p) }

// Waiting is how many decisions wait for their turn.
func Waiting(m *Manager) int {
	m.decider.mu.Lock()
	defer m.decider.mu.Unlock()
	return len(m.decider.waiting)
}
