package session_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pawl-dev/pawl/coordinator/session"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func TestList(t *testing.T) {
	t.Parallel()
	ctx, pool := t.Context(), dbtest.New(t)
	var all []*session.Session
	for _, name := range []string{"a", "b"} {
		s, err := session.Start(ctx, pool, session.Config{Name: name, Version: "v1"})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	if err := all[0].Close(ctx); err != nil {
		t.Fatal(err)
	}
	got, err := session.List(ctx, pool, 1, false, 10)
	if err != nil || len(got) != 1 || got[0].ID != all[1].ID() || got[0].Name != "b" || got[0].Version != "v1" || !got[0].Alive || got[0].PID == 0 {
		t.Errorf("alive: %+v, %v", got, err)
	}
	got, err = session.List(ctx, pool, 1, true, 10)
	if err != nil || len(got) != 2 || got[1].Alive || got[1].EndedAt == nil || got[1].EndedWhy != "closed" {
		t.Errorf("all: %+v, %v", got, err)
	}
	if got, err = session.List(ctx, pool, 1, true, 1); err != nil || len(got) != 1 {
		t.Errorf("one: %+v, %v", got, err)
	}
	if err := all[1].Close(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestFindNamespace(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	if ns, err := session.FindNamespace(t.Context(), pool, "default"); ns != 1 || err != nil {
		t.Errorf("default: %d, %v", ns, err)
	}
	if _, err := session.FindNamespace(t.Context(), pool, "nope"); !errors.Is(err, session.ErrNamespace) {
		t.Errorf("nope: %v", err)
	}
	empty, err := pgxpool.New(t.Context(), dbtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if _, err := session.FindNamespace(t.Context(), empty, "default"); !errors.Is(err, session.ErrSchema) {
		t.Errorf("without a schema: %v", err)
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	pool := dbtest.New(t)
	at, ahead, err := session.Clock(t.Context(), pool)
	if err != nil || at.IsZero() || ahead.Abs() > time.Minute {
		t.Errorf("got %s, %s ahead, %v; the server is on this machine", at, ahead, err)
	}
}
