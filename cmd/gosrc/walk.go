package gosrc

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// List returns the Go files below root, with slashes, in order. Links are not followed, and names that are not UTF-8 are passed over: JSON cannot
// hold them.
func List(root string) ([]string, error) {
	var paths []string
	err := fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && path.Ext(name) == ".go" && utf8.ValidString(name) {
			paths = append(paths, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list Go files: %w", err)
	}
	return paths, nil
}

// Walk counts the Go files below root one after the other, without a database.
func Walk(ctx context.Context, root string) (Totals, error) {
	paths, err := List(root)
	if err != nil {
		return nil, err
	}
	totals := Totals{}
	imported := map[string]map[string]bool{}
	for _, name := range paths {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
		if err != nil {
			return nil, fmt.Errorf("count Go files: %w", err)
		}
		s := Count(text)
		dir := dirOf(name)
		p := totals[dir]
		p.add(s.Counts)
		p.Files++
		if s.Bad {
			p.Bad++
		}
		if imported[dir] == nil {
			imported[dir] = map[string]bool{}
		}
		for _, imp := range s.Imported {
			imported[dir][imp] = true
		}
		p.Imported = len(imported[dir])
		totals[dir] = p
	}
	return totals, nil
}

// Diff compares two counts package by package, every figure of them, and describes each package that differs in one line. Nothing: they are equal.
func Diff(got, want Totals) []string {
	dirs := slices.Sorted(maps.Keys(want))
	for dir := range got {
		if _, ok := want[dir]; !ok {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	var lines []string
	for _, dir := range dirs {
		g, inGot := got[dir]
		w, inWant := want[dir]
		switch {
		case !inGot:
			lines = append(lines, fmt.Sprintf("%s: missing, want %d files", dir, w.Files))
		case !inWant:
			lines = append(lines, fmt.Sprintf("%s: %d files that are not there", dir, g.Files))
		case g != w:
			lines = append(lines, dir+": "+strings.Join(differences(g, w), ", "))
		}
	}
	return lines
}

func differences(got, want Package) []string {
	var parts []string
	for _, f := range []struct {
		name      string
		got, want int
	}{
		{"files", got.Files, want.Files},
		{"bad", got.Bad, want.Bad},
		{"lines", got.Lines, want.Lines},
		{"funcs", got.Funcs, want.Funcs},
		{"methods", got.Methods, want.Methods},
		{"types", got.Types, want.Types},
		{"consts", got.Consts, want.Consts},
		{"vars", got.Vars, want.Vars},
		{"imports", got.Imports, want.Imports},
		{"imported", got.Imported, want.Imported},
	} {
		if f.got != f.want {
			parts = append(parts, fmt.Sprintf("%s %d, want %d", f.name, f.got, f.want))
		}
	}
	return parts
}
