package lock_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/lock"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func BenchmarkPair(b *testing.B) {
	pool := dbtest.New(b)
	for _, parallel := range []int{1, 8} { // goroutines a processor
		b.Run(fmt.Sprint("parallel ", parallel), func(b *testing.B) {
			l := open(b, pool, lock.Config{})
			ctx := b.Context()
			var n atomic.Int64
			b.SetParallelism(parallel)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				name := fmt.Sprint("name ", n.Add(1))
				for pb.Next() {
					lease, err := l.Acquire(ctx, name)
					if err != nil {
						b.Fatal(err)
					}
					if err := lease.Release(ctx); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.ReportMetric(float64(l.RoundTrips())/float64(b.N), "trips/op")
		})
	}
}

func BenchmarkTryAcquire_held(b *testing.B) {
	pool := dbtest.New(b)
	acquire(b, open(b, pool, lock.Config{}), b.Context(), "x")
	l := open(b, pool, lock.Config{})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.TryAcquire(b.Context(), "x"); !errors.Is(err, lock.ErrHeld) {
			b.Fatal(err)
		}
	}
}
