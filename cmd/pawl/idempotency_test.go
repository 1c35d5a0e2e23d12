package main

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pawl-dev/pawl/coordinator/idempotency"
)

// TestIdempotency looks at keys that were answered, and at one whose request stands at a point.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	refused(t, exitNotFound, url, []string{"idempotency", "show", "k"}, "nothing is stored for key k")
	_, _, err := idempotency.Do(t.Context(), pool, idempotency.Key{Scope: "client 7", Key: "k"}, nil, idempotency.Options{},
		func(context.Context, pgx.Tx) (idempotency.Response, error) {
			return idempotency.Response{Status: 201, Body: []byte("made")}, nil
		})
	if err != nil {
		t.Fatal(err)
	}
	stuck := errors.New("stuck")
	for range 2 {
		_, _, err = idempotency.Phases(t.Context(), pool, idempotency.Key{Scope: "client 8", Key: "k"}, nil, idempotency.Options{},
			func(ctx context.Context, c *idempotency.Claim) (idempotency.Response, error) {
				_, err := idempotency.Phase(ctx, c, "charge", func(context.Context, string) (string, error) { return "ch_1", nil })
				return idempotency.Response{}, errors.Join(err, stuck)
			})
		if !errors.Is(err, stuck) {
			t.Fatal(err)
		}
	}
	mentions(t, must(t, exitOK, url, "idempotency", "show", "k"), "client 7", "answered", "201 made", "client 8", "in progress at point charge", "claim 2, of ", "ran out",
		"the next request goes on", "points of client 8", `"ch_1"`)
	mentions(t, must(t, exitOK, url, "idempotency", "list"), "client 8", "in progress at point charge")
	refused(t, exitUsage, url, []string{"idempotency", "list", "--limit", "0"}, "--limit")

	var got struct {
		Keys []struct {
			Scope, Key string
			Status     int
			InProgress *struct {
				Claims int
				Token  string
			} `json:"in_progress"`
			Points []struct{ Name, Output, Token string }
		}
	}
	if err := json.Unmarshal([]byte(must(t, exitOK, url, "--json", "idempotency", "show", "k")), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Keys) != 2 || got.Keys[0].Status != 201 || got.Keys[0].InProgress != nil || got.Keys[1].InProgress == nil || got.Keys[1].InProgress.Claims != 2 ||
		len(got.Keys[1].Points) != 1 || got.Keys[1].Points[0].Name != "charge" || got.Keys[1].Points[0].Output != "ch_1" || got.Keys[1].Points[0].Token >= got.Keys[1].InProgress.Token {
		t.Errorf("got %+v", got)
	}
	if err := json.Unmarshal([]byte(must(t, exitOK, url, "--json", "idempotency", "list")), &got); err != nil || len(got.Keys) != 1 || got.Keys[0].Scope != "client 8" {
		t.Errorf("listed %+v, %v", got, err)
	}
}
