package barrier_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/barrier"
)

func BenchmarkHandler(b *testing.B) {
	for _, parallel := range []int{1, 8} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			h := barrier.Handler(open(b), work)
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
