package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pawl-dev/pawl/coordinator/job"
	"github.com/pawl-dev/pawl/db/dbtest"
)

func TestWorkBadInput(t *testing.T) {
	t.Parallel()
	url := dbtest.NewURL(t)
	config := func(text string) string {
		file := filepath.Join(t.TempDir(), "work.json")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, c := range []struct {
		flags []string
		want  []string
	}{
		{[]string{"--queue", "a=x"}, []string{`"x" is not a number of slots`, "mail=20"}},
		{[]string{"--queue", "a=0"}, []string{`queue "a": 0 slots`}},
		{[]string{"--queue", "=5"}, []string{"queue's name"}},
		{[]string{"--queue", "a", "--queue", "a=2"}, []string{"named twice"}},
		{[]string{"--queue", "a=0", "--drain=-1s"}, []string{"0 slots", "drain"}},
		{[]string{"--config", "/no/such/file"}, []string{"/no/such/file"}},
		{[]string{"--config", config("{bad")}, []string{"--config", "invalid character"}},
		{[]string{"--config", config(`{"commands": {}} {}`)}, []string{"behind the JSON object"}},
		{[]string{"--config", config(`{"comands": {}}`)}, []string{`unknown field "comands"`}},
		{[]string{"--config", config(`{"commands": {"a": {"argv": ["/bin/true"], "shell": true}}}`)}, []string{`unknown field "shell"`}},
		{[]string{"--config", config(`{"commands": {"a": {"argv": ["/bin/true"], "timeout": "soon"}}}`)}, []string{`"soon" is not a duration`}},
		{[]string{"--config", config(`{"commands": {"a": {}, "b": {"argv": ["ls"]}, "c": {"argv": ["/bin/ls"], "dir": "x"}}}`)}, []string{
			`command "a": argv is missing`, `command "b": argv begins with "ls"`, `command "c": dir "x"`,
		}},
	} {
		refused(t, exitUsage, url, append([]string{"work"}, c.flags...), c.want...)
	}
}

func TestParseQueues(t *testing.T) {
	t.Parallel()
	got, err := parseQueues([]string{"mail=5", "a=b=7", "c"})
	if err != nil || len(got) != 3 || got["mail"] != 5 || got["a=b"] != 7 || got["c"] != slotsDefault {
		t.Errorf("got %v, %v", got, err)
	}
	got, err = parseQueues(nil)
	if err != nil || len(got) != 1 || got["default"] != slotsDefault {
		t.Errorf("without flags: %v, %v", got, err)
	}
}

// A worker does an HTTP call from end to end, and logs nothing of what the job says or got.
func TestWorkHTTP(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	asked := make(chan *http.Request, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- r
		_, _ = io.WriteString(w, `{"got": `+string(body)+`, "answer": "s3cr3t-answer"}`)
	}))
	t.Cleanup(server.Close)
	w := start(t, url, "work", "--allow-private", "--queue", "calls=2", "--log-level", "debug")
	id := enqueue(t, url, "pawl.http", `{"url": "`+server.URL+`/hook?token=s3cr3t-token", "headers": {"X-Key": "s3cr3t-key"}, "body": {"n": "s3cr3t-body"}}`, "--queue", "calls")
	if got := await(t, pool, id); got != job.StateSucceeded {
		t.Fatalf("%s: %s", got, must(t, exitOK, url, "job", "show", id64(id)))
	}
	r := <-asked
	if r.Method != "POST" || r.Header.Get("X-Key") != "s3cr3t-key" || r.Header.Get("Content-Type") != "application/json" ||
		r.Header.Get("Idempotency-Key") != "pawl-"+id64(id) || !strings.HasPrefix(r.UserAgent(), "pawl/") {
		t.Errorf("asked %s with %v", r.Method, r.Header)
	}
	mentions(t, must(t, exitOK, url, "job", "show", id64(id)), "succeeded", `"status": 200`, `"answer": "s3cr3t-answer"`, `"n": "s3cr3t-body"`)

	private := enqueue(t, url, "pawl.http", `{"url": 3}`, "--queue", "calls")
	if got := await(t, pool, private); got != job.StateDiscarded {
		t.Errorf("args of a wrong type: %s", got)
	}
	mentions(t, must(t, exitOK, url, "job", "show", id64(private)), "args: url: a string is wanted, not number")
	if code := w.stop(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	mentions(t, w.log.String(), "job succeeded", "job="+id64(id), "outcome=discarded", "worker stopped")
	if strings.Contains(w.log.String(), "s3cr3t") {
		t.Errorf("the log tells secrets:\n%s", w.log)
	}
}

// Without --allow-private a worker calls nothing on its own machine or network.
func TestWorkPrivate(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a private address was called") }))
	t.Cleanup(server.Close)
	start(t, url, "work")
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"} {
		id := enqueue(t, url, "pawl.http", `{"url": "http://`+host+":"+port+`/"}`)
		if got := await(t, pool, id); got != job.StateDiscarded {
			t.Errorf("%s: %s", host, got)
		}
		mentions(t, must(t, exitOK, url, "job", "show", id64(id)), "the address is not public", "--allow-private")
	}
}

// A job that runs is asked to cancel: its process stops it.
func TestWorkCancel(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	called, ended := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(called)
		<-r.Context().Done()
		close(ended)
	}))
	t.Cleanup(server.Close)
	start(t, url, "work", "--allow-private")
	id := enqueue(t, url, "pawl.http", `{"url": "`+server.URL+`"}`)
	<-called
	mentions(t, must(t, exitOK, url, "job", "show", id64(id)), "running for ")
	mentions(t, must(t, exitOK, url, "job", "cancel", id64(id), "--reason", "changed my mind"), "its process is asked to stop it")
	<-ended
	if got := await(t, pool, id); got != job.StateCancelled {
		t.Errorf("state %s", got)
	}
	mentions(t, must(t, exitOK, url, "job", "show", id64(id)), "cancelled after", "asked to stop while it ran", "changed my mind")
}

// An interrupt lets running jobs finish.
func TestWorkDrain(t *testing.T) {
	t.Parallel()
	pool, url := openPool(t)
	called, answer := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(called)
		<-answer
	}))
	t.Cleanup(server.Close)
	w := start(t, url, "work", "--allow-private")
	id := enqueue(t, url, "pawl.http", `{"url": "`+server.URL+`"}`)
	<-called
	w.interrupt()
	w.log.await(t, "worker stops when its running jobs are done")
	close(answer)
	if code := w.stop(t); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if got := await(t, pool, id); got != job.StateSucceeded {
		t.Errorf("state %s", got)
	}
}
