package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/pawl-dev/pawl/cmd/checkout"
)

// checkoutReport is what a run of the example checkout did, and whether it was right.
type checkoutReport struct {
	Run      int64            `json:"run,string"`
	URL      string           `json:"url"` // of the shop
	ElapsedS float64          `json:"elapsed_s"`
	Kills    map[string]int   `json:"kills"` // by service
	Calls    checkout.Tally   `json:"calls"`
	Figures  checkout.Figures `json:"figures"`
	Claims   []checkout.Claim `json:"claims"`
}

// wrong says what is wrong with the result, if anything is.
func (r *checkoutReport) wrong() error { return wrongClaims(r.Claims) }

func wrongClaims(claims []checkout.Claim) error {
	for _, c := range claims {
		if len(c.Differences) > 0 {
			return errors.New("the tables do not show what they should")
		}
	}
	return nil
}

// write writes the report, as text or JSON.
func (r *checkoutReport) write(a *app) error {
	if a.json {
		return a.printJSON(r)
	}
	w, c, f := a.out, r.Calls, r.Figures
	fmt.Fprintf(w, "\n%s of %s in %.1f s: asked for by %s, several with one key at once.\n", plural(f.Orders, "order"), plural(f.Customers, "customer"), r.ElapsedS, plural(f.Clients, "client"))
	if n, kills := r.kills(); n > 0 {
		fmt.Fprintf(w, "%s killed: %s.\n", plural(n, "process was", "processes were"), kills)
	}
	fmt.Fprintf(w, "%s to the shop: %s, of them %s with what was stored for the key.\n", plural(c.Calls, "call"), plural(c.Answers, "answer"), thousands(c.Replayed))
	fmt.Fprintf(w, "The others were made again: %s met another with their key at work (409), %s were given up by the client, %s cut off, %s failed.\n",
		thousands(c.InFlight), thousands(c.Hurried), thousands(c.Cut), thousands(c.Failed))
	stopped := ""
	if f.Stopped > 0 {
		stopped = fmt.Sprintf(", %s by an operator", thousands(f.Stopped))
	}
	fmt.Fprintf(w, "%s confirmed, %s cancelled: for %s nothing was left in stock, %s the bank refused, %s got no answer from payments%s.\n",
		plural(f.Confirmed, "order was", "orders were"), thousands(f.Cancelled), thousands(f.Short), thousands(f.Refused), thousands(f.Unanswered), stopped)
	fmt.Fprintf(w, "%s, of them %s; %s came again, and the barrier knew them.\n", plural(f.Payments, "payment"), plural(f.Refunds, "refund"), plural(f.PaymentRepeats, "call"))
	fmt.Fprintf(w, "%s to shipping: %s again, of events that its inbox knew.\n\n", plural(f.Parcels+f.Repeats, "delivery", "deliveries"), thousands(f.Repeats))
	return writeClaims(w, r.Claims)
}

// kills is how many processes were killed, and of which services.
func (r *checkoutReport) kills() (n int, text string) {
	var parts []string
	for _, name := range devServices {
		n += r.Kills[name]
		parts = append(parts, fmt.Sprintf("%s %d", name, r.Kills[name]))
	}
	return n, strings.Join(parts, ", ")
}

// writeClaims writes what was proved, or what is wrong.
func writeClaims(w io.Writer, claims []checkout.Claim) error {
	if wrongClaims(claims) == nil {
		fmt.Fprintln(w, "Proof, from the tables:")
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		for _, c := range claims {
			fmt.Fprintf(t, "%s\t %s: %s.\n", thousands(c.Count), c.Of, c.Text)
		}
		return t.Flush()
	}
	for _, c := range claims {
		if len(c.Differences) == 0 {
			continue
		}
		fmt.Fprintf(w, "WRONG, %s from this: %s %s: %s.\n", plural(len(c.Differences), "difference"), thousands(c.Count), c.Of, c.Text)
		for _, line := range c.Differences[:min(len(c.Differences), devDiffMax)] {
			fmt.Fprintln(w, "  "+plain(line))
		}
		if more := len(c.Differences) - devDiffMax; more > 0 {
			fmt.Fprintf(w, "  and %d more\n", more)
		}
	}
	return nil
}
