package session

import (
	"context"
	"fmt"
	"time"

	"github.com/pawl-dev/pawl/db"
)

// Clock asks Postgres for the time, and tells by how much this machine's clock is ahead of it (negative: behind), give or take half the time that the
// answer took. It is for people to look at: nothing that Pawl decides hangs on this machine's clock.
func Clock(ctx context.Context, on db.DBTX) (server time.Time, ahead time.Duration, err error) {
	began := time.Now()
	server, err = db.New(on).ReadClock(ctx)
	if err != nil {
		return server, 0, fmt.Errorf("read clock: %w", err)
	}
	return server, began.Add(time.Since(began) / 2).Sub(server), nil
}
