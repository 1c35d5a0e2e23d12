package main

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pawl-dev/pawl/db/dbtest"
)

// TestBenchJobs measures little, by real processes: what matters is that the figures are there and make sense.
func TestBenchJobs(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "pawl")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(bin, "--database-url", dbtest.NewURL(t), "--json", "bench", "jobs", "--jobs=2000", "--pin-writer", "--only=insert,rss")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var r benchReport
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, key := range []string{"insert_jobs_per_s", "work_jobs_per_s", "pinned_work_jobs_per_s", "worker_rss_mb"} {
		if r.Figures[key] <= 0 {
			t.Errorf("%s: got %v", key, r.Figures[key])
		}
	}
	if _, ok := r.Figures["wal_bytes_per_job_worked"]; !ok { // how much, the run proves that has the server to itself
		t.Error("no WAL a job")
	}
	if dead, ok := r.Figures["dead_rows"]; !ok || dead != 0 {
		t.Errorf("dead rows: got %v, %v", dead, ok)
	}
	if r.Settings["fsync"] == "" || r.Machine["cores"] == nil {
		t.Errorf("machine and settings: got %v, %v", r.Machine, r.Settings)
	}
	if out, err := exec.Command(bin, "bench", "jobs", "--only=nothing").CombinedOutput(); err == nil {
		t.Errorf("an unknown figure was measured: %s", out)
	}
}
