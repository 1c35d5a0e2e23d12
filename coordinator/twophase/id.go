package twophase

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	// NameBytesMax is how long a participant's name may be: with its branch it must fit in 64 bytes of MySQL.
	NameBytesMax = 32
	prefix       = "pawl:" // of the names of branches
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,32}$`)

// BranchID names what a global transaction does at one participant.
type BranchID struct {
	Namespace   int16
	Home        string    // the coordinator's database, its timeline and its incarnation when the transaction began
	ID          uuid.UUID // of the transaction
	Deadline    time.Time // to the second: past it, who finds the branch undecided may abort it
	Participant string
}

// Global names the transaction in at most 64 bytes: namespace, home and id, with colons between.
func (b BranchID) Global() string {
	return strconv.Itoa(int(b.Namespace)) + ":" + b.Home + ":" + hex.EncodeToString(b.ID[:])
}

// Branch names the branch within its transaction in at most 64 bytes: the deadline as hexadecimal Unix seconds, and the participant.
func (b BranchID) Branch() string {
	return strconv.FormatInt(b.Deadline.Unix(), 16) + ":" + b.Participant
}

// String is the branch's name at a Postgres: below 200 bytes of letters, digits, colons, dots, hyphens and underscores.
func (b BranchID) String() string { return prefix + b.Global() + ":" + b.Branch() }

// MarshalText is String, for JSON.
func (b BranchID) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText is ParseBranchID.
func (b *BranchID) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBranchID(string(text))
	return err
}

// at gives the branch of the same transaction at another participant.
func (b BranchID) at(participant string) BranchID {
	b.Participant = participant
	return b
}

// database is the part of a home that tells the database, whatever became of it since.
func database(home string) string {
	d, _, _ := strings.Cut(home, ".")
	return d
}

// ParseBranchID reads the name of a branch. It fails for names that are not of this package's making.
func ParseBranchID(name string) (BranchID, error) {
	rest, ours := strings.CutPrefix(name, prefix)
	parts := strings.SplitN(rest, ":", 5)
	if !ours || len(parts) != 5 {
		return BranchID{}, fmt.Errorf("%w: %q does not name a branch", ErrInvalid, name)
	}
	ns, err1 := strconv.ParseInt(parts[0], 10, 16)
	id, err2 := uuid.Parse(parts[2])
	deadline, err3 := strconv.ParseInt(parts[3], 16, 64)
	b := BranchID{Namespace: int16(ns), Home: parts[1], ID: id, Deadline: time.Unix(deadline, 0), Participant: parts[4]}
	if err1 != nil || err2 != nil || err3 != nil || b.String() != name {
		return BranchID{}, fmt.Errorf("%w: %q does not name a branch", ErrInvalid, name)
	}
	return b, nil
}
