package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pawl-dev/pawl/coordinator/outbox"
)

const (
	headerID        = "Webhook-Id"
	headerTimestamp = "Webhook-Timestamp"
	headerSignature = "Webhook-Signature"

	secretPrefix     = "whsec_"
	keyBytesMin      = 24
	keyBytesMax      = 64
	toleranceDefault = 5 * time.Minute
)

var (
	// ErrSignature: a request was not signed with any of the secrets.
	ErrSignature = errors.New("webhook: not signed with a known secret")
	// ErrStale: a request was signed too long ago, or too far ahead of this machine's clock.
	ErrStale = errors.New("webhook: signed too long ago or ahead")
	// ErrMalformed: a request was signed with a known secret, but is no CloudEvent 1.0 in JSON.
	ErrMalformed = errors.New("webhook: not an event")
)

// parseSecrets does not quote them.
func parseSecrets(secrets []string) ([][]byte, error) {
	var keys [][]byte
	for i, secret := range secrets {
		encoded, prefixed := strings.CutPrefix(secret, secretPrefix)
		key, err := base64.StdEncoding.DecodeString(encoded)
		if !prefixed || err != nil || len(key) < keyBytesMin || len(key) > keyBytesMax {
			return nil, fmt.Errorf("%w: webhook: Secrets: number %d must be %s and the base64 of %d to %d bytes", outbox.ErrInvalid, i+1, secretPrefix, keyBytesMin, keyBytesMax)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// signature is a body's, without its version.
func signature(key []byte, id, timestamp string, body []byte) []byte {
	sum := hmac.New(sha256.New, key)
	sum.Write([]byte(id + "." + timestamp + "."))
	sum.Write(body)
	return sum.Sum(nil)
}

// sign sets the headers of Standard Webhooks.
func sign(header http.Header, keys [][]byte, id string, at time.Time, body []byte) {
	timestamp := strconv.FormatInt(at.Unix(), 10)
	header.Set(headerID, id)
	header.Set(headerTimestamp, timestamp)
	var all []string
	for _, key := range keys {
		all = append(all, "v1,"+base64.StdEncoding.EncodeToString(signature(key, id, timestamp, body)))
	}
	if len(all) > 0 {
		header.Set(headerSignature, strings.Join(all, " "))
	}
}

// Verify checks that a request with this header and body was signed with one of the secrets, and no longer ago than tolerance (0: 5 minutes), nor further ahead, by this
// machine's clock, and returns the event in it. Who has seen a request can send it again that long: see idempotency.Once. The error is ErrSignature, ErrStale, ErrMalformed, or
// outbox.ErrInvalid for bad secrets.
func Verify(secrets []string, header http.Header, body []byte, tolerance time.Duration) (outbox.Event, error) {
	keys, err := parseSecrets(secrets)
	if err != nil {
		return outbox.Event{}, err
	}
	return verify(keys, header, body, tolerance)
}

func verify(keys [][]byte, header http.Header, body []byte, tolerance time.Duration) (outbox.Event, error) {
	if tolerance == 0 {
		tolerance = toleranceDefault
	}
	id, timestamp := header.Get(headerID), header.Get(headerTimestamp)
	if !isSigned(keys, header.Get(headerSignature), id, timestamp, body) {
		return outbox.Event{}, ErrSignature
	}
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return outbox.Event{}, ErrSignature
	}
	if age := time.Since(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return outbox.Event{}, ErrStale
	}
	return decode(body)
}

func isSigned(keys [][]byte, signatures, id, timestamp string, body []byte) bool {
	for _, key := range keys {
		want := signature(key, id, timestamp, body)
		for _, signed := range strings.Fields(signatures) {
			version, encoded, _ := strings.Cut(signed, ",")
			got, err := base64.StdEncoding.DecodeString(encoded)
			if version == "v1" && err == nil && hmac.Equal(got, want) {
				return true
			}
		}
	}
	return false
}
