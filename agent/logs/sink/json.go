package sink

import (
	"encoding/binary"
	"unicode/utf8"
)

const hex = "0123456789abcdef"

// plain marks the bytes that stand for themselves in a JSON string of Docker's.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return t
}()

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// allPlain says that all eight bytes of w are plain. The sums and differences
// that cross bytes can only make it say no too often, never yes.
func allPlain(w uint64) bool {
	eq := func(c uint64) uint64 { // a high bit where a byte is c
		x := w ^ c*ones
		return (x - ones) &^ x
	}
	bad := w | (w - 0x20*ones) | eq('"') | eq('\\') | eq('<') | eq('>') | eq('&')
	return bad&highs == 0
}

// AppendJSON appends s as Docker's json-file driver quotes it, without the
// quotes: invalid UTF-8 becomes U+FFFD, and <, >, &, U+2028 and U+2029 are
// escaped as by encoding/json.
func AppendJSON(b, s []byte) []byte {
	start := 0
	for i := 0; i < len(s); {
		for i+8 <= len(s) && allPlain(binary.LittleEndian.Uint64(s[i:])) {
			i += 8
		}
		if i == len(s) {
			break
		}
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(s[i:])
			if (r != utf8.RuneError || n > 1) && r != 0x2028 && r != 0x2029 {
				i += n
				continue
			}
			b = append(b, s[start:i]...)
			if n == 1 {
				b = append(b, `\ufffd`...)
			} else {
				b = append(b, `\u202`...)
				b = append(b, hex[r&15])
			}
			i += n
			start = i
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	return append(b, s[start:]...)
}

// appendTime appends t (nanoseconds of the epoch) in RFC 3339, UTC, with the
// fraction's trailing zeros cut, as time.RFC3339Nano does.
func appendTime(b []byte, t int64) []byte {
	sec, ns := t/1e9, t%1e9
	days, rem := sec/86400, sec%86400
	// Civil date from days (Hinnant's algorithm, eras of 400 years).
	z := days + 719468
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	d := doy - (153*mp+2)/5 + 1
	m := mp + 3
	if m > 12 {
		m -= 12
	}
	y := yoe + era*400
	if m <= 2 {
		y++
	}
	b = append(b, byte('0'+y/1000), byte('0'+y/100%10), byte('0'+y/10%10), byte('0'+y%10), '-')
	b = append(b, byte('0'+m/10), byte('0'+m%10), '-', byte('0'+d/10), byte('0'+d%10), 'T')
	h, mi, s := rem/3600, rem/60%60, rem%60
	b = append(b, byte('0'+h/10), byte('0'+h%10), ':', byte('0'+mi/10), byte('0'+mi%10), ':', byte('0'+s/10), byte('0'+s%10))
	if ns != 0 {
		var f [10]byte
		f[0] = '.'
		for i := 9; i > 0; i-- {
			f[i] = byte('0' + ns%10)
			ns /= 10
		}
		n := 10
		for f[n-1] == '0' {
			n--
		}
		b = append(b, f[:n]...)
	}
	return append(b, 'Z')
}
