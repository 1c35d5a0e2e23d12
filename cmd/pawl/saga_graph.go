package main

import (
	"slices"
	"strings"
)

// graphLanesMax is how many columns of lines a drawing may have. What does not fit is said in words.
const graphLanesMax = 20

// graphRow is one line of a drawing: a step, or where the lines that a step waits for turn to it.
type graphRow struct {
	art   string // as wide as that of all others
	step  int    // -1: a turn
	after []int  // of a turn whose lines are not drawn: the steps that they would come from
}

// layGraph draws steps that depend on each other, one a row, each below all that it waits for. after has the indices of the steps that each one waits for, all of them
// smaller than its own; marks what stands for each step.
//
// A step that waits for one other hangs below it: in the same column if it is the only one, on a branch of it if there are several. A step that waits for several is a
// join: a lane on the right gathers lines from all of them and turns left to where they had branched off, which is the last step that all of them come after (its
// dominator). So the parts between a branch and its join stay together, and a chain of branches and joins grows down, not to the right.
// What follows anyway is not drawn: of a → b → c, that c also waits for a.
func layGraph(after [][]int, marks []rune) []graphRow {
	g := &graph{parents: withoutShortcuts(after), rowOf: make([]int, len(after)), columnOf: make([]int, len(after))}
	g.region = make([][]int, len(after)+1)
	for i, d := range dominators(g.parents) {
		g.region[d+1] = append(g.region[d+1], i)
	}
	g.place(-1, 0)
	if slices.Max(append(g.columnOf, 0)) >= graphLanesMax {
		return listGraph(g.parents, marks)
	}
	g.gather()
	return g.draw(marks)
}

// graph is a drawing in the making.
type graph struct {
	parents  [][]int
	region   [][]int // by dominator, plus 1: the steps right below it in the tree of dominators, each after those of them that it waits for; 0: below none
	rows     []int   // the step of each row, -1 a turn to the step of the next
	rowOf    []int
	columnOf []int
	branches []branch
	lanes    []lane
}

// branch is the line down from a step to those that wait for it alone.
type branch struct {
	column int
	from   int // first row
	rows   []int
}

// lane gathers the lines to a join.
type lane struct {
	step   int
	column int // 0: not drawn
	from   int // row of the first step that it waits for
	to     int // row of the turn
}

// place gives rows and columns to the region of a step (-1: to everything) that has its place already.
func (g *graph) place(step, column int) {
	below := g.region[step+1]
	last := -1 // of those on a branch
	for i, s := range below {
		if len(g.parents[s]) < 2 {
			last = i
		}
	}
	b := branch{column: column, from: len(g.rows)}
	for i, s := range below {
		at := column
		if len(below) > 1 && i <= last {
			at++
		}
		if len(g.parents[s]) > 1 {
			g.rows = append(g.rows, -1)
			g.lanes = append(g.lanes, lane{step: s, to: len(g.rows) - 1})
		} else {
			b.rows = append(b.rows, len(g.rows))
		}
		g.rowOf[s], g.columnOf[s] = len(g.rows), at
		g.rows = append(g.rows, s)
		g.place(s, at)
	}
	if len(b.rows) > 1 {
		g.branches = append(g.branches, b)
	}
}

// gather gives each lane a column: to the right of all steps that it passes, those that end first further left.
func (g *graph) gather() {
	for i := range g.lanes {
		l := &g.lanes[i]
		l.from = l.to
		for _, p := range g.parents[l.step] {
			l.from = min(l.from, g.rowOf[p])
		}
	}
	for i := range g.lanes {
		l := &g.lanes[i]
		column := g.columnOf[l.step] + 1
		for row := l.from; row <= l.to; row++ {
			if s := g.rows[row]; s >= 0 {
				column = max(column, g.columnOf[s]+1)
			}
		}
		for slices.ContainsFunc(g.lanes[:i], func(o lane) bool { return o.column == column && o.from <= l.to && l.from <= o.to }) {
			column++
		}
		if column < graphLanesMax {
			l.column = column
		}
	}
}

// The directions in which a line leaves a cell.
const (
	lineUp = 1 << iota
	lineDown
	lineLeft
	lineRight
)

// lines has the character for each set of directions. Lines that cross without touching are drawn as the one that goes up.
var lineRunes = map[int]rune{
	0: ' ', lineUp: '╵', lineDown: '╷', lineLeft: '╴', lineRight: '╶', lineUp | lineDown: '│', lineLeft | lineRight: '─', lineDown | lineRight: '┌', lineDown | lineLeft: '┐',
	lineUp | lineRight: '└', lineUp | lineLeft: '┘', lineUp | lineDown | lineRight: '├', lineUp | lineDown | lineLeft: '┤', lineDown | lineLeft | lineRight: '┬',
	lineUp | lineLeft | lineRight: '┴', lineUp | lineDown | lineLeft | lineRight: '┼',
}

// canvas has a cell for each row and column, and between any two columns one more.
type canvas [][]int

// across draws from one column to another, past the lines that it meets.
func (c canvas) across(row, from, to int) {
	c[row][2*from] |= lineRight
	for x := 2*from + 1; x < 2*to; x++ {
		if c[row][x]&(lineUp|lineDown) == 0 {
			c[row][x] |= lineLeft | lineRight
		}
	}
	c[row][2*to] |= lineLeft
}

// down draws from one row to another.
func (c canvas) down(column, from, to int) {
	for row := from; row <= to; row++ {
		if row > from {
			c[row][2*column] |= lineUp
		}
		if row < to {
			c[row][2*column] |= lineDown
		}
	}
}

// draw draws it all: first what goes down, so that what goes across passes it.
func (g *graph) draw(marks []rune) []graphRow {
	width := 2*slices.Max(append(g.columnOf, 0)) + 1
	for _, l := range g.lanes {
		width = max(width, 2*l.column+1)
	}
	c := make(canvas, len(g.rows))
	for i := range c {
		c[i] = make([]int, width)
	}
	for _, b := range g.branches {
		c.down(b.column, b.from, b.rows[len(b.rows)-1])
		if b.from > 0 && g.rows[b.from-1] >= 0 { // there is a step above
			c[b.from][2*b.column] |= lineUp
		}
	}
	for _, l := range g.lanes {
		if l.column > 0 {
			c.down(l.column, l.from, l.to)
		}
	}
	for _, b := range g.branches {
		for _, row := range b.rows {
			c.across(row, b.column, b.column+1)
		}
	}
	out := make([]graphRow, len(g.rows))
	for row, s := range g.rows {
		out[row].step = s
	}
	outs := make([][]int, len(g.parents)) // the lanes that a step's line meets
	for _, l := range g.lanes {
		if l.column == 0 {
			out[l.to].after = g.parents[l.step]
			continue
		}
		for _, p := range g.parents[l.step] {
			c.across(g.rowOf[p], g.columnOf[p], l.column)
			outs[p] = append(outs[p], l.column)
		}
		c.across(l.to, g.columnOf[l.step], l.column)
		c[l.to][2*g.columnOf[l.step]] |= lineDown
	}
	for s, columns := range outs {
		for _, column := range columns {
			if column < slices.Max(columns) { // it goes on
				c[g.rowOf[s]][2*column] |= lineRight
			}
		}
	}
	for row, cells := range c {
		var art strings.Builder
		for x, cell := range cells {
			if s := g.rows[row]; s >= 0 && x == 2*g.columnOf[s] {
				art.WriteRune(marks[s])
			} else {
				art.WriteRune(lineRunes[cell])
			}
		}
		out[row].art = art.String()
	}
	return out
}

// listGraph is what is left of a drawing that would be too wide: the steps in order, each below the names of those that it waits for.
func listGraph(parents [][]int, marks []rune) []graphRow {
	var out []graphRow
	for s, of := range parents {
		if len(of) > 0 {
			out = append(out, graphRow{art: " ", step: -1, after: of})
		}
		out = append(out, graphRow{art: string(marks[s]), step: s})
	}
	return out
}

// withoutShortcuts leaves out that a step waits for one which another that it waits for comes after anyway.
func withoutShortcuts(after [][]int) [][]int {
	before := make([][]bool, len(after)) // all that a step comes after
	out := make([][]int, len(after))
	for s, of := range after {
		before[s] = make([]bool, len(after))
		for _, p := range of {
			for q, is := range before[p] {
				before[s][q] = before[s][q] || is
			}
		}
		for _, p := range of {
			if !before[s][p] {
				out[s] = append(out[s], p)
			}
		}
		for _, p := range of {
			before[s][p] = true
		}
	}
	return out
}

// dominators returns, for each step, the last one that everything before it comes after, or -1.
func dominators(parents [][]int) []int {
	dominator, depth := make([]int, len(parents)), make([]int, len(parents))
	for s, of := range parents {
		if len(of) == 0 {
			dominator[s] = -1
			continue
		}
		d := of[0]
		for _, p := range of[1:] {
			for d != p {
				switch { // the deeper one goes up
				case d < 0 || p < 0:
					d, p = -1, -1
				case depth[d] >= depth[p]:
					d = dominator[d]
				default:
					p = dominator[p]
				}
			}
		}
		dominator[s] = d
		if d >= 0 {
			depth[s] = depth[d] + 1
		}
	}
	return dominator
}
