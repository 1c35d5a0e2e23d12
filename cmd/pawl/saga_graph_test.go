package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// parseGraph reads steps as "name" or "name:what,it,waits,for".
func parseGraph(text string) (names []string, after [][]int) {
	for _, field := range strings.Fields(text) {
		name, of, _ := strings.Cut(field, ":")
		var indices []int
		for p := range strings.SplitSeq(of, ",") {
			if i := slices.Index(names, p); i >= 0 {
				indices = append(indices, i)
			}
		}
		names, after = append(names, name), append(after, indices)
	}
	return names, after
}

func drawGraph(text string) string {
	names, after := parseGraph(text)
	var out strings.Builder
	for _, r := range layGraph(after, []rune(strings.Repeat("o", len(names)))) {
		line := r.art + "  "
		if r.step >= 0 {
			line += names[r.step]
		}
		if r.after != nil {
			line += "after"
		}
		for _, p := range r.after {
			line += " " + names[p]
		}
		fmt.Fprintln(&out, strings.TrimRight(line, " "))
	}
	return out.String()
}

// TestGraph has the shapes that people make.
func TestGraph(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ what, text, want string }{
		{"nothing", "", ""},
		{"chain", "a b:a c:b", `
o  a
o  b
o  c
`},
		{"diamond, and a step behind it", "a b:a c:a d:b,c e:d", `
o      a
├─o─┐  b
└─o─┤  c
┌───┘
o      d
o      e
`},
		{"two diamonds do not move to the right", "a b:a c:a d:b,c e:d f:d g:e,f", `
o      a
├─o─┐  b
└─o─┤  c
┌───┘
o      d
├─o─┐  e
└─o─┤  f
┌───┘
o      g
`},
		{"branches of unequal length, and a shortcut", "a b:a c:b d:a e:a,c,d", `
o      a
├─o    b
│ o─┐  c
└─o─┤  d
┌───┘
o      e
`},
		{"steps that nothing comes before, one of which nothing comes after", "a b c d:a,b", `
┌─o─┐  a
├─o─┤  b
└─o │  c
┌───┘
o      d
`},
		{"a diamond in a branch of another", "a b:a b1:b b2:b bj:b1,b2 c:a j:bj,c", `
o        a
├─o      b
│ ├─o─┐  b1
│ └─o─┤  b2
│ ┌───┘
│ o─┐    bj
└─o─┤    c
┌───┘
o        j
`},
		{"a join with a branch beside it", "a b:a c:a d:b,c e:a", `
o      a
├─o─┐  b
├─o─┤  c
│ ┌─┘
│ o    d
└─o    e
`},
		{"all joined with all: lines that meet", "a b c x:a,b,c y:a,b,c", `
┌─o─┬─┐  a
├─o─┼─┤  b
└─o─┼─┤  c
┌───┘ │
o     │  x
┌─────┘
o        y
`},
		{"lines that cross without meeting", "a b:a c:a d:a e:b,d f:c,d", `
o        a
├─o─┐    b
├─o─│─┐  c
└─o─┼─┤  d
┌───┘ │
o     │  e
┌─────┘
o        f
`},
	} {
		if got := drawGraph(c.text); got != strings.TrimPrefix(c.want, "\n") {
			t.Errorf("%s: got\n%swant%s", c.what, got, c.want)
		}
	}
}

// TestGraphWide has graphs that are as wide as they may be, and wider.
func TestGraphWide(t *testing.T) {
	t.Parallel()
	wide, names := "a", "" // 60 steps between two: as narrow as a diamond
	for i := range 60 {
		wide += fmt.Sprintf(" s%d:a", i)
		names += fmt.Sprintf(",s%d", i)
	}
	got := strings.Split(drawGraph(wide+" j:"+names[1:]), "\n")
	if len(got) != 64 || got[1] != "├─o─┐  s0" || got[60] != "└─o─┤  s59" || got[61] != "┌───┘" || got[62] != "o      j" {
		t.Errorf("60 branches: got\n%s", strings.Join(got, "\n"))
	}
	crowd, pair := "a", "" // 30 joins of two, none of which is near
	for i := range 30 {
		crowd += fmt.Sprintf(" s%d:a", i)
		pair += fmt.Sprintf(" j%d:s%d,s%d", i, i, (i+1)%30)
	}
	text := drawGraph(crowd + pair)
	mentions(t, text, " after s28 s29\no ") // in words, what has no lane left
	for line := range strings.Lines(text) {
		if strings.Count(line, "")-1 > 2*graphLanesMax+50 {
			t.Errorf("too wide: %s", line)
		}
	}
	deep := "a0" // a branch in a branch in a branch …
	for i := range 30 {
		deep += fmt.Sprintf(" a%d:a%d b%d:a%d", i+1, i, i, i)
	}
	mentions(t, drawGraph(deep), "o  a0\n   after a0\no  a1\n   after a0\no  b0\n   after a1\no  a2\n")
}

// TestGraphReadsBack draws graphs at random and follows the lines, as an eye would: out of a step to the right or down, down any lane that is met, and right to any branch.
func TestGraphReadsBack(t *testing.T) {
	t.Parallel()
	const rounds = 3000
	words := 0
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 1))
		after := make([][]int, 1+r.IntN(62))
		near := 1 + r.IntN(12) // how far back a step looks
		for s := range after {
			for range r.IntN(4) {
				if p := s - 1 - r.IntN(near); p >= 0 && !slices.Contains(after[s], p) {
					after[s] = append(after[s], p)
				}
			}
		}
		rows := layGraph(after, []rune(strings.Repeat("o", len(after))))
		got, inWords := readGraph(t, rows, len(after))
		words += inWords
		want := withoutShortcuts(after)
		for s := range want {
			slices.Sort(want[s])
			slices.Sort(got[s])
			if !slices.Equal(got[s], want[s]) {
				t.Fatalf("seed %d: step %d waits for %v, and is drawn below %v:\n%s", seed, s, want[s], got[s], join(rows))
			}
		}
	}
	if words > rounds/10 {
		t.Errorf("%d joins of %d graphs are not drawn", words, rounds)
	}
}

func join(rows []graphRow) string {
	text := ""
	for _, r := range rows {
		text += fmt.Sprintf("%s %d\n", r.art, r.step)
	}
	return text
}

// readGraph returns what each step waits for by the drawing, and how many steps are said to in words.
func readGraph(t *testing.T, rows []graphRow, steps int) (after [][]int, inWords int) {
	t.Helper()
	after = make([][]int, steps)
	cells := make([][]rune, len(rows))
	at := func(row, x int) rune {
		if row < 0 || row >= len(rows) || x < 0 || x >= len(cells[row]) {
			return ' '
		}
		return cells[row][x]
	}
	for i, r := range rows {
		cells[i] = []rune(r.art)
		if len(cells[i]) != len(cells[0]) || len(cells[i]) > 2*graphLanesMax {
			t.Fatalf("row %d is %d wide", i, len(cells[i]))
		}
		if r.after != nil {
			after[rows[i+1].step] = append(after[rows[i+1].step], r.after...)
			inWords++
		}
	}
	type place struct{ row, x, down, right int } // and where to
	for i, r := range rows {
		if r.step < 0 {
			continue
		}
		if slices.Index(cells[i], 'o') < 0 {
			t.Fatalf("row %d has no mark", i)
		}
		x := slices.Index(cells[i], 'o')
		todo, seen := []place{{i, x, 1, 0}, {i, x, 0, 1}}, map[place]bool{}
		for len(todo) > 0 {
			p := todo[0]
			todo = todo[1:]
			p.row, p.x = p.row+p.down, p.x+p.right
			if seen[p] {
				continue
			}
			seen[p] = true
			turn := func(down, right int) { todo = append(todo, place{p.row, p.x, down, right}) }
			c := at(p.row, p.x)
			switch {
			case c == 'o' && p.down == 1 && at(p.row, p.x-1) == '─': // the next on the same branch
			case c == 'o':
				if s := rows[p.row].step; !slices.Contains(after[s], r.step) {
					after[s] = append(after[s], r.step)
				}
			case p.down == 1: // from above
				switch c {
				case '│', '┤', '┼':
					turn(1, 0)
				case '├':
					turn(1, 0)
					turn(0, 1)
				case '└':
					turn(0, 1)
				case '┘':
					turn(0, -1)
				}
			case p.right == 1: // from the left
				switch c {
				case '─', '│':
					turn(0, 1)
				case '┐', '┤':
					turn(1, 0)
				case '┬', '┼':
					turn(1, 0)
					turn(0, 1)
				}
			default: // from the right
				switch c {
				case '─', '│':
					turn(0, -1)
				case '┌':
					turn(1, 0)
				default:
					t.Fatalf("row %d: a turn ends at %c", p.row, c)
				}
			}
		}
	}
	return after, inWords
}
