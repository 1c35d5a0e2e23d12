package checkout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	lanes        = 16                     // keys at work at once
	clientsMax   = 4                      // that ask at once with one key, 2 at least
	lateEvery    = 3                      // of so many keys one is asked for once more when all have their answer,
	othersEvery  = 10                     // of so many one is used again for another order,
	dearEvery    = 10                     // and of so many one is for an order that the bank refuses
	hurryEvery   = 4                      // of so many clients one gives its first request up
	hurryMax     = 40 * time.Millisecond  // after so long at most
	againMin     = 5 * time.Millisecond   // before a client asks again, doubled each time,
	againMax     = 200 * time.Millisecond // up to this
	callTimeout  = 10 * time.Second       // of one call
	bodyBytesMax = 1 << 20                // read of an answer
)

// Request is an order that a number of clients ask for with one key.
type Request struct {
	Key      string
	Customer string
	Item     string
	Cents    int64
	Clients  int // that ask for it
	Late     int // of them, when the others have their answer
	Others   int // that then use the key for another order
}

// Answer is what a client was told in the end.
type Answer struct {
	Key         string
	Other       bool // the client had used the key for another order
	Status      int
	Replayed    bool
	Location    string
	ContentType string
	Body        []byte
}

// Tally counts what became of calls.
type Tally struct {
	Calls    int `json:"calls"`
	Answers  int `json:"answers"`   // that were definite
	Replayed int `json:"replayed"`  // of them
	InFlight int `json:"in_flight"` // 409: another client's request was at work
	Failed   int `json:"failed"`    // 5xx, 429: to be asked again
	Cut      int `json:"cut"`       // the connection was lost
	Hurried  int `json:"hurried"`   // the client did not wait for the answer
}

var (
	customers = strings.Fields("ada alan barbara blaise charles claude dennis donald edsger emmy frances gottfried grace john katherine ken konrad leslie margaret niklaus radia rosa sophie tony")
	items     = strings.Fields("bread butter candles coffee honey ink jam lamp nails oats paper rope salt soap tea thread")
)

// plan makes the requests of a run. Its customers are its own.
func plan(run int64, orders int) []Request {
	requests := make([]Request, orders)
	for i := range requests {
		q := Request{
			Key: fmt.Sprintf("run-%d-order-%d", run, i+1), Customer: fmt.Sprintf("%s-%d", customers[rand.IntN(len(customers))], run),
			Item: items[rand.IntN(len(items))], Cents: 1 + rand.Int64N(CentsMax), Clients: 2 + rand.IntN(clientsMax-1),
		}
		if i%lateEvery == 0 {
			q.Late, q.Clients = 1, q.Clients+1
		}
		if i%othersEvery == 0 {
			q.Others = 1
		}
		if i%dearEvery == dearEvery/2 {
			q.Cents += CentsMax
		}
		requests[i] = q
	}
	return requests
}

// Load is many impatient clients of a shop: those of a key ask at once, give up early, and ask again until they have an answer. It is safe for concurrent use.
type Load struct {
	url    string
	client *http.Client
	done   atomic.Int64

	mu      sync.Mutex
	answers []Answer
	tally   Tally
}

// NewLoad makes clients of the shop at a URL.
func NewLoad(url string) *Load {
	return &Load{url: url, client: &http.Client{Timeout: callTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: lanes * clientsMax}}}
}

// Run has all requests asked until every client has its answer, and returns the answers; or until ctx ends.
func (l *Load) Run(ctx context.Context, requests []Request) ([]Answer, error) {
	defer l.client.CloseIdleConnections()
	var (
		group sync.WaitGroup
		next  atomic.Int64
	)
	for range lanes {
		group.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(requests) {
					return
				}
				l.request(ctx, requests[i])
			}
		})
	}
	group.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.answers, context.Cause(ctx)
}

// Done is how many requests are answered to all their clients.
func (l *Load) Done() int { return int(l.done.Load()) }

// Tally is what became of the calls so far.
func (l *Load) Tally() Tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tally
}

// request has the clients of a key ask: most of them at once, then those who come late, then those who use the key for something else.
func (l *Load) request(ctx context.Context, q Request) {
	var group sync.WaitGroup
	for range q.Clients - q.Late {
		group.Go(func() { l.ask(ctx, q, false) })
	}
	group.Wait()
	for range q.Late {
		l.ask(ctx, q, false)
	}
	for range q.Others {
		l.ask(ctx, q, true)
	}
	if ctx.Err() == nil {
		l.done.Add(1)
	}
}

// ask is one client, who asks until there is an answer, or ctx ends.
func (l *Load) ask(ctx context.Context, q Request, other bool) {
	hurry := time.Duration(0)
	if rand.IntN(hurryEvery) == 0 {
		hurry = time.Millisecond + rand.N(hurryMax)
	}
	for wait := againMin; ctx.Err() == nil; wait = min(2*wait, againMax) {
		a, err := l.call(ctx, q, other, hurry)
		if l.count(ctx, a, err, hurry > 0) {
			return
		}
		hurry = 0
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
		}
	}
}

// call asks once, and gives up after hurry if that is not 0.
func (l *Load) call(ctx context.Context, q Request, other bool, hurry time.Duration) (Answer, error) {
	if hurry > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, hurry)
		defer cancel()
	}
	cents := q.Cents
	if other {
		cents++
	}
	wish, err := json.Marshal(map[string]any{"item": q.Item, "cents": cents})
	if err != nil {
		return Answer{}, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+"/orders", bytes.NewReader(wish))
	if err != nil {
		return Answer{}, err
	}
	r.GetBody = nil // else net/http asks again by itself where a connection is lost, uncounted
	r.SetBasicAuth(q.Customer, "")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", q.Key)
	resp, err := l.client.Do(r)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyBytesMax))
	return Answer{
		Key: q.Key, Other: other, Status: resp.StatusCode, Replayed: resp.Header.Get("Idempotent-Replayed") == "true",
		Location: resp.Header.Get("Location"), ContentType: resp.Header.Get("Content-Type"), Body: body,
	}, err
}

// count notes what became of a call and tells whether it was the client's last: it has its answer.
func (l *Load) count(ctx context.Context, a Answer, err error, hurried bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tally.Calls++
	switch {
	case hurried && errors.Is(err, context.DeadlineExceeded):
		l.tally.Hurried++
	case err != nil && ctx.Err() != nil: // the run is cut off
		l.tally.Calls--
	case err != nil:
		l.tally.Cut++
	case a.Status == http.StatusConflict:
		l.tally.InFlight++
	case a.Status >= 500 || a.Status == http.StatusTooManyRequests:
		l.tally.Failed++
	default:
		l.tally.Answers++
		if a.Replayed {
			l.tally.Replayed++
		}
		l.answers = append(l.answers, a)
		return true
	}
	return false
}
