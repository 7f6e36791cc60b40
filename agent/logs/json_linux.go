package logs

import (
	"bytes"
	"encoding/json"
	"os"
	"time"
	"unicode/utf8"

	"machine/agent/model"
)

// jsonDecoder reads Docker's json-file format. What the shim writes takes the
// short way; anything else that is JSON is read, too.
type jsonDecoder struct {
	text  []byte
	attrs []byte // of the last record that had some
	known map[string]string
}

var (
	keyLog    = []byte(`{"log":"`)
	keyStream = []byte(`","stream":"`)
	keyAttrs  = []byte(`"attrs":`)
	keyTime   = []byte(`"time":"`)
)

func (d *jsonDecoder) back(f *os.File, max int) (int64, int, error) { return linesBack(f, max) }

func (d *jsonDecoder) record(b []byte, rec *model.LogRecord) (int, bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return 0, false
	}
	ok := d.fast(b[:i], rec) || d.slow(b[:i], rec)
	if ok {
		rec.Partial = len(rec.Line) == 0 || rec.Line[len(rec.Line)-1] != '\n'
	}
	return i + 1, ok
}

// fast reads exactly what the shim writes.
func (d *jsonDecoder) fast(b []byte, rec *model.LogRecord) bool {
	if !bytes.HasPrefix(b, keyLog) {
		return false
	}
	b, ok := d.unquote(b[len(keyLog):])
	if !ok || !bytes.HasPrefix(b, keyStream) {
		return false
	}
	b = b[len(keyStream):]
	switch {
	case bytes.HasPrefix(b, []byte(`stdout",`)):
		rec.Stream = "stdout"
	case bytes.HasPrefix(b, []byte(`stderr",`)):
		rec.Stream = "stderr"
	default:
		return false
	}
	b = b[len(`stdout",`):]
	rec.Attrs = nil
	if bytes.HasPrefix(b, keyAttrs) {
		if b = d.takeAttrs(b[len(keyAttrs):], rec); b == nil {
			return false
		}
	}
	if !bytes.HasPrefix(b, keyTime) {
		return false
	}
	b = b[len(keyTime):]
	if len(b) < 22 || !bytes.HasSuffix(b, []byte(`"}`)) {
		return false
	}
	if rec.Time, ok = parseTime(b[:len(b)-2]); !ok {
		return false
	}
	rec.Line = d.text
	return true
}

// takeAttrs reads the attributes, which are nearly always those of the record
// before.
func (d *jsonDecoder) takeAttrs(b []byte, rec *model.LogRecord) []byte {
	if d.attrs == nil || !bytes.HasPrefix(b, d.attrs) {
		dec := json.NewDecoder(bytes.NewReader(b))
		m := map[string]string{}
		if dec.Decode(&m) != nil {
			return nil
		}
		d.attrs = append([]byte(nil), b[:dec.InputOffset()]...)
		d.known = m
	}
	rec.Attrs = d.known
	b = b[len(d.attrs):]
	if len(b) == 0 || b[0] != ',' {
		return nil
	}
	return b[1:]
}

// unquote decodes a JSON string up to its closing quote into d.text and gives
// the rest, which begins with that quote.
func (d *jsonDecoder) unquote(b []byte) (rest []byte, ok bool) {
	d.text = d.text[:0]
	for {
		i := bytes.IndexByte(b, '"')
		if i < 0 {
			return nil, false
		}
		j := bytes.IndexByte(b[:i], '\\')
		if j < 0 {
			d.text = append(d.text, b[:i]...)
			return b[i:], true
		}
		d.text = append(d.text, b[:j]...)
		if j+1 >= len(b) {
			return nil, false
		}
		n := 2
		switch c := b[j+1]; c {
		case 'n':
			d.text = append(d.text, '\n')
		case 'r':
			d.text = append(d.text, '\r')
		case 't':
			d.text = append(d.text, '\t')
		case '"', '\\', '/':
			d.text = append(d.text, c)
		case 'u':
			r, ok := hex4(b[j+2:])
			if !ok || r >= 0xd800 && r < 0xe000 {
				return nil, false // pairs take the slow way
			}
			d.text = utf8.AppendRune(d.text, r)
			n = 6
		default:
			return nil, false
		}
		b = b[j+n:]
	}
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func (d *jsonDecoder) slow(b []byte, rec *model.LogRecord) bool {
	var v struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if len(bytes.TrimSpace(b)) == 0 || json.Unmarshal(b, &v) != nil || v.Time.IsZero() {
		return false
	}
	rec.Line, rec.Stream, rec.Attrs, rec.Time = []byte(v.Log), v.Stream, v.Attrs, v.Time
	return true
}

// parseTime reads RFC 3339 in UTC with up to nine digits of fraction.
func parseTime(b []byte) (time.Time, bool) {
	if len(b) < 20 || b[4] != '-' || b[7] != '-' || b[10] != 'T' || b[13] != ':' || b[16] != ':' || b[len(b)-1] != 'Z' {
		t, err := time.Parse(time.RFC3339Nano, string(b))
		return t, err == nil
	}
	ok := true
	num := func(from, to int) (n int) {
		for _, c := range b[from:to] {
			if c < '0' || c > '9' {
				ok = false
			}
			n = n*10 + int(c-'0')
		}
		return n
	}
	ns, scale := 0, 100000000
	if len(b) > 20 {
		if b[19] != '.' || len(b) > 30 {
			return time.Time{}, false
		}
		for _, c := range b[20 : len(b)-1] {
			if c < '0' || c > '9' {
				ok = false
			}
			ns += int(c-'0') * scale
			scale /= 10
		}
	}
	t := time.Date(num(0, 4), time.Month(num(5, 7)), num(8, 10), num(11, 13), num(14, 16), num(17, 19), ns, time.UTC)
	return t, ok
}
