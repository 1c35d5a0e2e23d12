package dbtest_test
import ("testing";"time";"github.com/jackc/pgx/v5";"github.com/pawl-dev/pawl/db/dbtest")
func TestProf(t *testing.T) {
	u := dbtest.EmptyURL(t)
	c, err := pgx.Connect(bounded(t), u); if err != nil { t.Fatal(err) }
	var tpl string
	if err := c.QueryRow(bounded(t), "select datname from pg_database where datname like 'pawl_template%'").Scan(&tpl); err != nil { t.Fatal(err) }
	for _, strat := range []string{"FILE_COPY","WAL_LOG"} {
	for _, mode := range []string{"plain","newconn","use","plain","newconn","use"} {
	var a,b time.Duration
	for range 8 {
		k := c
		if mode != "plain" { k, _ = pgx.Connect(bounded(t), u) }
		t1 := time.Now()
		if _, err := k.Exec(bounded(t), "create database x template "+tpl+" strategy "+strat); err != nil { t.Fatal(err) }
		t2 := time.Now()
		if k != c { k.Close(bounded(t)) }
		if mode == "use" {
			cf := c.Config().Copy(); cf.Database="x"
			k, err := pgx.ConnectConfig(bounded(t), cf); if err != nil { t.Fatal(err) }
			k.Ping(bounded(t))
			k.Close(bounded(t))
		}
		t5 := time.Now()
		if _, err := c.Exec(bounded(t), "drop database x with (force)"); err != nil { t.Fatal(err) }
		t6 := time.Now()
		a += t2.Sub(t1); b += t6.Sub(t5)
	}
	t.Log(strat, mode, "create", a/8, "drop", b/8)
	}}
}
