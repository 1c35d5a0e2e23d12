package barrier_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/barrier"
)

func BenchmarkHandler(b *testing.B) {
	for store, open := range services {
		for _, parallel := range []int{1, 8} {
			b.Run(fmt.Sprintf("store=%s/parallel=%d", store, parallel), func(b *testing.B) {
				h := open(b).handler(barrier.HTTP{}, note)
				var n atomic.Int64
				b.SetParallelism(parallel)
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if w := call(h, barrier.Branch{ID: fmt.Sprint(n.Add(1)), Branch: "charge", Op: barrier.Action}, ""); w.Code != 200 {
							b.Errorf("status %d: %s", w.Code, w.Body)
							return
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
			})
		}
	}
}

// note is work of one statement.
func note(ctx context.Context, tx transaction, _ barrier.Branch, _ []byte) (json.RawMessage, error) {
	return nil, tx.exec(ctx, "INSERT INTO effect (op) VALUES ('action')")
}
