package cli

import (
	"strconv"
	"strings"

	"machine/cli/lifecycle"
)

// parseSSH reads what follows the machine's name as ssh(1) does: options, then
// the command. native is false when there is an option that only the ssh
// program knows.
func parseSSH(args []string) (l lifecycle.Login, native bool) {
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && len(args[0]) > 1 {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			break
		}
		for letters := arg[1:]; letters != ""; {
			letter := letters[0]
			letters = letters[1:]
			if sshSwitch(&l, letter) {
				continue
			}
			value := letters
			letters = ""
			if value == "" && len(args) > 0 {
				value, args = args[0], args[1:]
			}
			if value == "" || !sshValue(&l, letter, value) {
				return l, false
			}
		}
	}
	l.Command = strings.Join(args, " ")
	return l, true
}

func sshSwitch(l *lifecycle.Login, letter byte) bool {
	yes, no := true, false
	switch letter {
	case 'A':
		l.Agent = true
	case 'N':
		l.NoCommand = true
	case 'T':
		l.Terminal = &no
	case 't':
		l.Terminal = &yes
	case 'a', 'n', 'q', 'x', 'C', '4', '6':
		// Nothing to do: they ask for what is so, or for less talk.
	default:
		return false
	}
	return true
}

func sshValue(l *lifecycle.Login, letter byte, value string) bool {
	switch letter {
	case 'L':
		l.Local = append(l.Local, value)
	case 'R':
		l.Remote = append(l.Remote, value)
	case 'D':
		l.Dynamic = append(l.Dynamic, value)
	case 'J':
		l.Jump = value
	case 'l':
		l.User = value
	case 'i':
		l.Key = value
	case 'p':
		n, err := strconv.Atoi(value)
		l.Port = n
		return err == nil && n > 0 && n < 65536
	default:
		return false
	}
	return true
}
