package outbox

import "github.com/pawl-dev/pawl/db"

// DB is what a call of this package runs on: a pgx.Tx, a *pgxpool.Pool or a *pgx.Conn.
type DB = db.DBTX
