package dbtest

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Example runs an executed example on a fresh, migrated database.
func Example(run func(pool *pgxpool.Pool)) {
	tb := &exampleTB{}
	defer tb.end()
	run(New(tb))
}

// exampleTB is what New needs of a test, where there is none.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (*exampleTB) Helper()      {}
func (*exampleTB) Failed() bool { return false }
func (*exampleTB) Name() string { return "Example" }

func (t *exampleTB) Cleanup(f func()) { t.cleanups = append(t.cleanups, f) }

func (*exampleTB) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (t *exampleTB) Errorf(format string, args ...any) { t.Logf(format, args...) }

func (*exampleTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (t *exampleTB) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}
