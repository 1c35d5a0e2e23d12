package idempotency

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/db"
)

// InboxKeep is how long the id of a message is remembered, at least.
const InboxKeep = 7 * 24 * time.Hour

// Once notes in the consumer's own transaction that it sees a message, before anything else, and tells whether it is the first time: if not, its effect has been committed,
// and the consumer only acknowledges. While another transaction has noted the same message, it waits for its end. Ids are kept for InboxKeep. The error is ErrInvalid or the
// database's.
func Once(ctx context.Context, tx pgx.Tx, ns int16, consumer, messageID string) (first bool, err error) {
	first, err = db.New(tx).SeeMessage(ctx, db.SeeMessageParams{Ns: max(ns, 1), Consumer: consumer, MessageID: messageID, Keep: InboxKeep})
	if err != nil {
		return false, fmt.Errorf("note message %q of %s: %w", messageID, consumer, wrap(err))
	}
	return first, nil
}
