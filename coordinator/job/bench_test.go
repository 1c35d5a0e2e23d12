package job_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func BenchmarkEnqueue(b *testing.B) {
	ctx := context.Background()
	d := job.Define[note]("note")
	for _, batch := range []int{1, 1000} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			pool := dbtest.New(b)
			for b.Loop() {
				if _, err := d.EnqueueMany(ctx, pool, notes(batch)); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(batch), "jobs/op")
		})
	}
}

// BenchmarkClaim claims, reads and ends a batch, in the calls that a worker makes.
func BenchmarkClaim(b *testing.B) {
	ctx := context.Background()
	d := job.Define[note]("note")
	for _, batch := range []int{1, 1000} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			pool := dbtest.New(b)
			var session int64
			if err := pool.QueryRow(ctx, "SELECT pawl.session_start(1::smallint, 'bench', '', 0, '', interval '1 hour')").Scan(&session); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				b.StopTimer()
				if _, err := d.EnqueueMany(ctx, pool, notes(batch)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				var claim int64
				if err := pool.QueryRow(ctx, "SELECT claim_id FROM pawl.claim(1::smallint, $1, 7, 1, 2::smallint, $2)", session, batch).Scan(&claim); err != nil {
					b.Fatal(err)
				}
				if _, err := pool.Exec(ctx, "SELECT * FROM pawl.claim_bodies(1::smallint, $1, 7, 0, $2)", claim, batch); err != nil {
					b.Fatal(err)
				}
				_, err := pool.Exec(ctx, "SELECT pawl.finish(1::smallint, $1, ARRAY[$2::bigint], ARRAY[7::bigint], ARRAY[int4multirange(int4range(0, $3))])", session, claim, batch)
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(batch), "jobs/op")
		})
	}
}
