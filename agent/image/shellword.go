package image

import (
	"fmt"
	"strings"
)

// splitWords splits at blanks outside of quotes, as Dockerfiles do; the words
// keep their quotes and backslashes.
func splitWords(s string) []string {
	var out []string
	var quote byte
	start := -1
	for i := 0; i < len(s); i++ {
		blank := s[i] == ' ' || s[i] == '\t'
		if start < 0 {
			if blank {
				continue
			}
			start = i
		}
		switch {
		case s[i] == '\\' && quote != '\'':
			i++
		case quote != 0:
			if s[i] == quote {
				quote = 0
			}
		case s[i] == '"' || s[i] == '\'':
			quote = s[i]
		case blank:
			out = append(out, s[start:i])
			start = -1
		}
	}
	if start >= 0 {
		out = append(out, s[start:])
	}
	return out
}

// A lexer takes the quotes from a word and puts variables in, by the rules of
// Dockerfiles: $NAME, ${NAME} and ${NAME:-otherwise} with :-, -, :+ and +.
type lexer struct {
	s   string
	at  int
	env []string
	out strings.Builder
}

// expand gives what a word means.
func expand(word string, env []string) (string, error) {
	l := &lexer{s: word, env: env}
	if err := l.until(""); err != nil {
		return "", fmt.Errorf("failed to process %q: %w", word, err)
	}
	return l.out.String(), nil
}

// until reads up to a byte of stop, or to the end.
func (l *lexer) until(stop string) error {
	for l.at < len(l.s) {
		c := l.s[l.at]
		switch {
		case strings.IndexByte(stop, c) >= 0:
			return nil
		case c == '\'':
			end := strings.IndexByte(l.s[l.at+1:], '\'')
			if end < 0 {
				return fmt.Errorf("unexpected end of statement while looking for matching single-quote")
			}
			l.out.WriteString(l.s[l.at+1 : l.at+1+end])
			l.at += end + 2
		case c == '"':
			if err := l.double(); err != nil {
				return err
			}
		case c == '$':
			if err := l.variable(); err != nil {
				return err
			}
		case c == '\\' && l.at+1 < len(l.s):
			l.out.WriteByte(l.s[l.at+1])
			l.at += 2
		case c == '\\':
			l.at++
		default:
			l.out.WriteByte(c)
			l.at++
		}
	}
	return nil
}

// double reads a double-quoted part, in which a backslash quotes only what
// means something there.
func (l *lexer) double() error {
	for l.at++; l.at < len(l.s); {
		switch c := l.s[l.at]; c {
		case '"':
			l.at++
			return nil
		case '$':
			if err := l.variable(); err != nil {
				return err
			}
		case '\\':
			if l.at+1 < len(l.s) {
				if l.at++; !strings.ContainsRune(`"$\`, rune(l.s[l.at])) {
					l.out.WriteByte('\\')
				}
			}
			l.out.WriteByte(l.s[l.at])
			l.at++
		default:
			l.out.WriteByte(c)
			l.at++
		}
	}
	return fmt.Errorf("unexpected end of statement while looking for matching double-quote")
}

func (l *lexer) variable() error {
	l.at++
	if l.at < len(l.s) && l.s[l.at] == '{' {
		return l.braces()
	}
	if name := l.name(); name != "" {
		value, _ := l.get(name)
		l.out.WriteString(value)
	} else {
		l.out.WriteByte('$')
	}
	return nil
}

// name reads a variable's name; a number or a sign that the shell knows is one
// byte long.
func (l *lexer) name() string {
	start := l.at
	for l.at < len(l.s) {
		c := l.s[l.at]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		digit := c >= '0' && c <= '9'
		if l.at == start && (digit || strings.IndexByte("@*#?-$!", c) >= 0) {
			l.at++
			break
		}
		if !letter && !digit {
			break
		}
		l.at++
	}
	return l.s[start:l.at]
}

// braces reads ${NAME} and what may follow the name.
func (l *lexer) braces() error {
	l.at++
	name := l.name()
	rest := l.s[l.at:]
	if name == "" || rest == "" {
		return fmt.Errorf("bad substitution")
	}
	if rest[0] == '}' {
		l.at++
		value, _ := l.get(name)
		l.out.WriteString(value)
		return nil
	}
	empty := rest[0] == ':' // an empty value counts as none
	if empty {
		l.at++
		rest = rest[1:]
	}
	if rest == "" || rest[0] != '-' && rest[0] != '+' {
		return fmt.Errorf("unsupported modifier in substitution")
	}
	l.at++
	sub := &lexer{s: l.s, at: l.at, env: l.env}
	if err := sub.until("}"); err != nil {
		return err
	}
	if sub.at >= len(sub.s) {
		return fmt.Errorf("unexpected end of statement while looking for '}'")
	}
	l.at = sub.at + 1
	value, set := l.get(name)
	if empty && value == "" {
		set = false
	}
	switch {
	case rest[0] == '+' && set, rest[0] == '-' && !set:
		value = sub.out.String()
	case rest[0] == '+':
		value = ""
	}
	l.out.WriteString(value)
	return nil
}

func (l *lexer) get(name string) (string, bool) {
	for _, e := range l.env {
		if k, v, _ := strings.Cut(e, "="); k == name {
			return v, true
		}
	}
	return "", false
}
