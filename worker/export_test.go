package worker

// SetFailpoint makes the worker call f at each of its failpoints. The job's id is 0 where none is concerned.
func SetFailpoint(w *Worker, f func(name string, jobID int64)) {
	w.failpoint = func(name string, t *task) {
		if t == nil {
			f(name, 0)
			return
		}
		f(name, t.id)
	}
}
