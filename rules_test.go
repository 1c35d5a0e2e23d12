// Package pawl_test holds the rules of this repository that no linter knows.
package pawl_test

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/pawl-dev/pawl"

// floors holds every package of the module, lowest floor first. A package imports only packages of lower floors.
var floors = [][]string{
	{"migrations", "db", "db/devpg", "db/devmaria"},
	{"db/migrate"},
	{"db/dbtest"},
	{"coordinator/session", "coordinator/outbound"},
	{"coordinator/job", "coordinator/lock", "coordinator/idempotency", "coordinator/outbox", "coordinator/barrier"},
	{"coordinator/outbox/sinktest", "coordinator/outbox/cloudevent", "coordinator/branch"},
	{"coordinator/saga", "coordinator/twophase", "coordinator/tcc", "coordinator/schedule", "coordinator/outbox/jobs", "coordinator/outbox/webhook", "coordinator/outbox/natssink", "coordinator/outbox/kafkasink", "coordinator/outbox/watermillsink"},
	{"coordinator/twophase/twophasetest"},
	{"coordinator", "worker"},
	{"coordinator/saga/sagatest"},
	{"cmd/pawl/api", "cmd/pawl/console", "cmd/gosrc", "cmd/checkout", "cmd/transfer"},
	{"cmd/pawl"},
	{"."}, // tests only
}

// onlyFor names, for some packages and all below them, the only ones that import them; a slash at the end stands for
// all below it. Tests may import them all.
var onlyFor = map[string][]string{
	"github.com/robfig/cron/v3":    {"coordinator", "cmd/"},
	"github.com/pressly/goose/v3":  {"db/migrate"},
	"github.com/cloudevents":       {},
	"github.com/standard-webhooks": {},
	module + "/db/migrate":         {"db/dbtest", "cmd/"},
	module + "/db/devpg":           {"db/dbtest", "cmd/"},
	module + "/db/devmaria":        {"db/dbtest", "cmd/"},
	module + "/db/dbtest":          {},
	"github.com/go-sql-driver":     {"db/dbtest", "cmd/"},
}

// clockReaders may ask the process's clock, to stop earlier than Postgres would; outbound and webhook for what they say to and hear from others by HTTP, who know no Postgres.
// All others ask Postgres.
var clockReaders = []string{"worker", "coordinator/session", "coordinator/lock", "coordinator/barrier", "coordinator/outbound", "coordinator/outbox/webhook", "cmd/", "db/devpg"}

// TestFloors checks the imports of every file, tests included: those may also import their own floor.
func TestFloors(t *testing.T) {
	floor := map[string]int{}
	for i, dirs := range floors {
		for _, dir := range dirs {
			floor[dir] = i
		}
	}
	for _, f := range sources(t) {
		own, ok := floor[f.dir]
		if !ok {
			t.Errorf("%s: package %s is not listed in floors", f.path, f.dir)
			continue
		}
		for _, imp := range f.imports() {
			below, ours := strings.CutPrefix(imp, module+"/")
			if !ours || below == f.dir {
				continue
			}
			other, ok := floor[below]
			switch {
			case !ok:
				t.Errorf("%s: imports %s, which is not listed in floors", f.path, below)
			case other > own || other == own && !f.test:
				t.Errorf("%s: imports %s, which is not on a lower floor than %s", f.path, below, f.dir)
			}
		}
	}
}

func TestOnlyFor(t *testing.T) {
	for _, f := range sources(t) {
		for _, imp := range f.imports() {
			for limited, users := range onlyFor {
				if (imp == limited || strings.HasPrefix(imp, limited+"/")) && !f.test && !f.in(users) {
					t.Errorf("%s: imports %s, which is only for %q and tests", f.path, imp, users)
				}
			}
		}
	}
}

func TestClock(t *testing.T) {
	for _, f := range sources(t) {
		for _, use := range f.uses("time") {
			switch use.name {
			case "Now", "Since", "Until":
				if !f.test && !f.in(clockReaders) {
					t.Errorf("%s: time.%s: only Postgres tells the time", f.at(use.pos), use.name)
				}
			case "Sleep":
				if f.test || f.dir == "db/dbtest" {
					t.Errorf("%s: time.Sleep in a test: wait for a signal or for a row", f.at(use.pos))
				}
			}
		}
	}
}

// TestGeneratedNames keeps what sqlc generated out of every exported declaration.
// The interface db.DBTX is free: it is how a caller lends his pool, connection or transaction.
func TestGeneratedNames(t *testing.T) {
	files := sources(t)
	generated := map[string]bool{}
	for _, f := range files {
		if f.dir == "db" && ast.IsGenerated(f.ast) {
			for _, name := range f.declared() {
				generated[name] = true
			}
		}
	}
	delete(generated, "DBTX")

	for _, f := range files {
		if f.dir == "db" || f.test {
			continue
		}
		uses := slices.DeleteFunc(f.uses(module+"/db"), func(u use) bool { return !generated[u.name] })
		seen := f.public()
		for _, u := range uses {
			if slices.ContainsFunc(seen, func(n ast.Node) bool { return n.Pos() <= u.pos && u.pos < n.End() }) {
				t.Errorf("%s: db.%s is generated: it may not appear in an exported declaration", f.at(u.pos), u.name)
			}
		}
	}
}

var (
	sqlComment   = regexp.MustCompile(`--[^\n]*`)
	sqlRoutine   = regexp.MustCompile(`(?i)\bCREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\s+([\w.]+)`)
	sqlPath      = regexp.MustCompile(`(?i)\bSET\s+search_path\s*(?:=|TO)\s*pg_catalog\s*,\s*pg_temp\b`)
	sqlDefiner   = regexp.MustCompile(`(?i)\bSECURITY\s+DEFINER\b`)
	sqlInlined   = regexp.MustCompile(`(?is)\bLANGUAGE\s+sql\s+IMMUTABLE\b.*\bAS\s+'([^']*)'`)
	sqlAtomic    = regexp.MustCompile(`(?is)\bLANGUAGE\s+sql\b[^;]*\bBEGIN\s+ATOMIC\b`)
	sqlBareCall  = regexp.MustCompile(`(?i)(?:^|[^\w.])[a-z_]\w*\(`)
	sqlDollarTag = regexp.MustCompile(`\$\w*\$`)
)

// TestFunctionsSetSearchPath checks each function of the migrations: nobody's search_path may change what it means,
// and it runs with its caller's rights. Free is an immutable one-liner in SQL that calls only what it names with a
// schema: Postgres inlines it, which SET would prevent. Free is a body between BEGIN ATOMIC and END too, whose names
// are bound when it is created.
func TestFunctionsSetSearchPath(t *testing.T) {
	names, err := filepath.Glob("migrations/*.sql")
	if err != nil || len(names) == 0 {
		t.Fatalf("no migrations found: %v", err)
	}
	for _, name := range names {
		sql := withoutBodies(sqlComment.ReplaceAllString(read(t, name), ""))
		if sqlDefiner.MatchString(sql) {
			t.Errorf("%s: SECURITY DEFINER", name)
		}
		for _, at := range sqlRoutine.FindAllStringSubmatchIndex(sql, -1) {
			statement, _, _ := strings.Cut(sql[at[0]:], ";")
			body := sqlInlined.FindStringSubmatch(statement)
			inlined := body != nil && !sqlBareCall.MatchString(body[1])
			if !inlined && !sqlAtomic.MatchString(statement) && !sqlPath.MatchString(statement) {
				t.Errorf("%s: %s lacks SET search_path = pg_catalog, pg_temp", name, sql[at[2]:at[3]])
			}
		}
	}
}

// withoutBodies removes what stands between dollar quotes.
func withoutBodies(sql string) string {
	var out strings.Builder
	for {
		open := sqlDollarTag.FindStringIndex(sql)
		if open == nil {
			out.WriteString(sql)
			return out.String()
		}
		tag, rest := sql[open[0]:open[1]], sql[open[1]:]
		out.WriteString(sql[:open[0]])
		_, after, closed := strings.Cut(rest, tag)
		if !closed {
			return out.String()
		}
		sql = after
	}
}

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```")

// TestReadme checks that each Go block of README.md stands, but for its indentation, in a file of executed examples.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if os.IsNotExist(err) {
		t.Fatal("README.md is missing")
	}
	if err != nil {
		t.Fatal(err)
	}
	var examples []string
	for _, f := range sources(t) {
		executed := func(e *doc.Example) bool { return e.Output != "" || e.EmptyOutput }
		if f.test && slices.ContainsFunc(doc.Examples(f.ast), executed) {
			examples = append(examples, unindent(read(t, f.path)))
		}
	}
	for _, block := range goBlock.FindAllStringSubmatch(string(readme), -1) {
		if !slices.ContainsFunc(examples, func(e string) bool { return strings.Contains(e, unindent(block[1])) }) {
			t.Errorf("README.md: this block stands in no executed example:\n%s", block[1])
		}
	}
}

func unindent(text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "\n")
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// source is one Go file, whatever its build constraints.
type source struct {
	path string // with slashes, from the root of the repository
	dir  string // its package's directory
	test bool
	fset *token.FileSet
	ast  *ast.File
}

// sources parses every Go file of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var files []source
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if base == "testdata" || base != "." && strings.ContainsRune("._", rune(base[0])) {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(base) != ".go" {
			return nil
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		files = append(files, source{name, path.Dir(name), strings.HasSuffix(base, "_test.go"), fset, tree})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (f source) at(pos token.Pos) string { return f.fset.Position(pos).String() }

func (f source) in(dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		return f.dir == dir || strings.HasSuffix(dir, "/") && strings.HasPrefix(f.dir+"/", dir)
	})
}

func (f source) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		paths = append(paths, importPath(spec))
	}
	return paths
}

func importPath(spec *ast.ImportSpec) string {
	imp, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		panic(err) // the parser lets no such path through
	}
	return imp
}

type use struct {
	name string
	pos  token.Pos
}

// uses returns what this file names of the package with this import path, whose name is the path's last element.
func (f source) uses(imp string) []use {
	called := map[string]bool{}
	for _, spec := range f.ast.Imports {
		switch {
		case importPath(spec) != imp:
		case spec.Name != nil:
			called[spec.Name.Name] = true
		default:
			called[path.Base(imp)] = true
		}
	}
	var uses []use
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && called[x.Name] {
				uses = append(uses, use{sel.Sel.Name, sel.Pos()})
			}
		}
		return true
	})
	return uses
}

// declared returns the names of this file's functions, types, variables and constants.
func (f source) declared() []string {
	var names []string
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					names = append(names, s.Name.Name)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	return names
}

// public returns the parts of this file that a caller of its package sees: exported types without their
// unexported fields, types of exported variables and constants, signatures of exported functions and methods.
func (f source) public() []ast.Node {
	var nodes []ast.Node
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiver(d))) {
				nodes = append(nodes, d.Type)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				nodes = append(nodes, publicSpec(spec)...)
			}
		}
	}
	return nodes
}

func publicSpec(spec ast.Spec) []ast.Node {
	var nodes []ast.Node
	switch s := spec.(type) {
	case *ast.ValueSpec:
		if slices.ContainsFunc(s.Names, (*ast.Ident).IsExported) {
			nodes = append(nodes, s)
		}
	case *ast.TypeSpec:
		if !s.Name.IsExported() {
			break
		}
		fields, ok := s.Type.(*ast.StructType)
		if !ok {
			return append(nodes, s)
		}
		for _, field := range fields.Fields.List {
			if len(field.Names) == 0 || slices.ContainsFunc(field.Names, (*ast.Ident).IsExported) {
				nodes = append(nodes, field)
			}
		}
	}
	return nodes
}

// receiver returns the type name of a method's receiver.
func receiver(d *ast.FuncDecl) string {
	expr := d.Recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}
