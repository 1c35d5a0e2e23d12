package gosrc_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pawl-dev/pawl/cmd/gosrc"
)

func TestCount(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text string
		want gosrc.Source
	}{
		"empty":                                 {"", gosrc.Source{Bad: true}},
		"package clause, no newline at the end": {"package p", gosrc.Source{Counts: gosrc.Counts{Lines: 1}}},
		"package clause":                        {"package p\n", gosrc.Source{Counts: gosrc.Counts{Lines: 1}}},
		"every kind of declaration": {
			`package p

import "fmt"
import (
	. "strings"
	io "io"
)

const a, b = 1, 2

const (
	c = iota
	d
)

var e, _ = 1, 2

type (
	t1 struct{}
	t2 = t1
)

func f() { type inner int; const x = 1 }

func (t1) m()  {}
func (*t1) n() {}
`,
			gosrc.Source{
				Counts:   gosrc.Counts{Lines: 26, Funcs: 1, Methods: 2, Types: 2, Consts: 4, Vars: 2, Imports: 3},
				Imported: []string{"fmt", "strings", "io"},
			},
		},
		"the same import twice": {
			"package p\nimport a \"x\"\nimport b `x`\n",
			gosrc.Source{Counts: gosrc.Counts{Lines: 3, Imports: 2}, Imported: []string{"x", "x"}},
		},
		"an import that is not UTF-8": {
			"package p\nimport \"a\\xffb\"\n",
			gosrc.Source{Counts: gosrc.Counts{Lines: 2, Imports: 1}, Imported: []string{`a\xffb`}},
		},
		"does not parse: lines only": {"package p\n\nimport \"fmt\"\n\nfunc {\n", gosrc.Source{Counts: gosrc.Counts{Lines: 5}, Bad: true}},
		"binary":                     {"\x00\xff\n", gosrc.Source{Counts: gosrc.Counts{Lines: 1}, Bad: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := gosrc.Count([]byte(tc.text))
			if got.Counts != tc.want.Counts || got.Bad != tc.want.Bad || !slices.Equal(got.Imported, tc.want.Imported) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestDecls(t *testing.T) {
	t.Parallel()
	if got := (gosrc.Counts{Lines: 100, Funcs: 1, Methods: 2, Types: 4, Consts: 8, Vars: 16, Imports: 100}).Decls(); got != 31 {
		t.Errorf("got %d declarations, want 31", got)
	}
}

// writeTree makes Go files in a directory of the test's own.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// tree has three packages, one of them with a file that does not parse, and files that are not Go.
var tree = map[string]string{
	"root.go":            "package root\n",
	"a/a.go":             "package a\n\nimport \"fmt\"\n\nfunc A() { fmt.Println() }\n",
	"a/b.go":             "package a\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\ntype B int\n\nfunc (B) M() { fmt.Println(os.Args) }\n",
	"a/a_test.go":        "package a\n\nimport \"testing\"\n\nfunc TestA(t *testing.T) {}\n",
	"a/testdata/bad.go":  "package\n",
	"a/README.md":        "# a\n",
	"c/d/only_test.go":   "package d_test\n\nvar x, y = 1, 2\n",
	"c/d/.hidden_dir.go": "package d\n",
}

var treeTotals = gosrc.Totals{
	".":          {Files: 1, Counts: gosrc.Counts{Lines: 1}},
	"a":          {Files: 3, Imported: 3, Counts: gosrc.Counts{Lines: 20, Funcs: 2, Methods: 1, Types: 1, Imports: 4}},
	"a/testdata": {Files: 1, Bad: 1, Counts: gosrc.Counts{Lines: 1}},
	"c/d":        {Files: 2, Counts: gosrc.Counts{Lines: 4, Vars: 2}},
}

func TestWalk(t *testing.T) {
	t.Parallel()
	root := writeTree(t, tree)
	got, err := gosrc.Walk(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range gosrc.Diff(got, treeTotals) {
		t.Error(line)
	}
	want := gosrc.Package{Files: 7, Bad: 1, Imported: 3, Counts: gosrc.Counts{Lines: 26, Funcs: 2, Methods: 1, Types: 1, Vars: 2, Imports: 4}}
	if sum := got.Sum(); sum != want {
		t.Errorf("sum %+v, want %+v", sum, want)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	root := writeTree(t, tree)
	if err := os.Symlink("a.go", filepath.Join(root, "a", "link.go")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "dir.go"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "not\xffutf8.go"), nil, 0o644); err != nil {
		t.Skipf("this file system takes only names in UTF-8: %v", err)
	}
	got, err := gosrc.List(root)
	want := []string{"a/a.go", "a/a_test.go", "a/b.go", "a/testdata/bad.go", "c/d/.hidden_dir.go", "c/d/only_test.go", "root.go"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if _, err := gosrc.List(filepath.Join(root, "nowhere")); err == nil {
		t.Error("a directory that is not there was listed")
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	want := gosrc.Totals{
		"same":    {Files: 1, Counts: gosrc.Counts{Lines: 1}},
		"changed": {Files: 2, Counts: gosrc.Counts{Lines: 10, Vars: 1}},
		"missing": {Files: 3},
	}
	got := gosrc.Totals{
		"same":    {Files: 1, Counts: gosrc.Counts{Lines: 1}},
		"changed": {Files: 2, Counts: gosrc.Counts{Lines: 12, Vars: 3}, Imported: 1},
		"extra":   {Files: 4},
	}
	lines := gosrc.Diff(got, want)
	expected := []string{
		"changed: lines 12, want 10, vars 3, want 1, imported 1, want 0",
		"extra: 4 files that are not there",
		"missing: missing, want 3 files",
	}
	if !slices.Equal(lines, expected) {
		t.Errorf("got %q, want %q", lines, expected)
	}
	if lines := gosrc.Diff(want, want); lines != nil {
		t.Errorf("equal totals differ: %q", lines)
	}
}

// Each figure of a package is compared: a sum that is right by chance is not enough.
func TestDiff_everyFigure(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]gosrc.Package{
		"files": {Files: 1}, "bad": {Bad: 1}, "imported": {Imported: 1}, "lines": {Counts: gosrc.Counts{Lines: 1}}, "funcs": {Counts: gosrc.Counts{Funcs: 1}},
		"methods": {Counts: gosrc.Counts{Methods: 1}}, "types": {Counts: gosrc.Counts{Types: 1}}, "consts": {Counts: gosrc.Counts{Consts: 1}},
		"vars": {Counts: gosrc.Counts{Vars: 1}}, "imports": {Counts: gosrc.Counts{Imports: 1}},
	} {
		got := gosrc.Diff(gosrc.Totals{"p": p}, gosrc.Totals{"p": {}})
		if want := []string{"p: " + name + " 1, want 0"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
