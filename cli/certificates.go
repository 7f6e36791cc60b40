package cli

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"machine/cli/lifecycle"
)

func (p *program) certificatesCommand() *cli.Command {
	return &cli.Command{Name: "certificates", Usage: "Show how long certificates are good, and renew those that end soon", ArgsUsage: "[NAME...]",
		Flags: []cli.Flag{filterFlag(), &cli.BoolFlag{Name: "renew", Usage: "Renew what has lived two thirds of its time; no engine is restarted"}},
		Action: func(c *cli.Context) error {
			names, err := p.chosen(c)
			if err != nil {
				return err
			}
			if len(names) == 0 {
				all, err := p.m.Store.Names()
				if err != nil {
					return err
				}
				names = all
			}
			if c.Bool("renew") {
				if err := p.renew(c.Context, names); err != nil {
					return err
				}
			}
			w := tabwriter.NewWriter(p.stdout, 0, 0, 3, ' ', 0)
			fmt.Fprintln(w, "CERTIFICATE\tENDS\tDAYS\tSTATE")
			for _, ci := range p.m.Certificates(names) {
				if ci.Err != nil {
					fmt.Fprintf(w, "%s\t\t\t%s\n", ci.Name, oneLine(ci.Err))
					continue
				}
				state := "good"
				if ci.Stale {
					state = "renew"
				}
				if time.Now().After(ci.Ends) {
					state = "expired"
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", ci.Name, ci.Ends.Format(time.DateOnly), int(time.Until(ci.Ends).Hours()/24), state)
			}
			return w.Flush()
		}}
}

func (p *program) renew(ctx context.Context, names []string) error {
	if err := p.m.Bootstrap(ctx); err != nil {
		return err
	}
	var stale []string
	for _, ci := range p.m.Certificates(names) {
		if ci.Machine != "" && (ci.Stale || ci.Err != nil) {
			stale = append(stale, ci.Machine)
		}
	}
	return lifecycle.Each(ctx, stale, 16, func(ctx context.Context, name string) error {
		err := p.m.RegenerateCerts(ctx, name)
		if err == nil {
			p.say("Renewed the certificate of %q.", name)
		}
		return err
	})
}

// completionScripts offer commands, and names where they make sense.
var completionScripts = map[string]string{
	"bash": `_machine() {
	local cur=${COMP_WORDS[COMP_CWORD]}
	if [ "$COMP_CWORD" = 1 ]; then
		COMPREPLY=($(compgen -W "%[2]s" -- "$cur"))
	else
		case ${COMP_WORDS[1]} in
		create|apply|plan|down|completion|import|help) COMPREPLY=() ;;
		*) COMPREPLY=($(compgen -W "$(%[1]s ls -q 2>/dev/null)" -- "$cur")) ;;
		esac
	fi
}
complete -o default -F _machine %[1]s
`,
	"zsh": `#compdef %[1]s
_machine() {
	if (( CURRENT == 2 )); then
		compadd -- %[2]s
	else
		case ${words[2]} in
		create|apply|plan|down|completion|import|help) _files ;;
		*) compadd -- ${(f)"$(%[1]s ls -q 2>/dev/null)"} ;;
		esac
	fi
}
compdef _machine %[1]s
`,
	"fish": `complete -c %[1]s -f -n __fish_use_subcommand -a "%[2]s"
complete -c %[1]s -f -n "not __fish_use_subcommand; and not __fish_seen_subcommand_from create apply plan down completion import help" -a "(%[1]s ls -q 2>/dev/null)"
`,
	"powershell": `Register-ArgumentCompleter -Native -CommandName %[1]s -ScriptBlock {
	param($word, $ast, $cursor)
	$parts = @($ast.CommandElements | ForEach-Object { $_.ToString() })
	$at = $parts.Count - $(if ($word) { 1 } else { 0 })
	$offer = if ($at -le 1) { "%[2]s".Trim() -split ' ' }
		elseif (@('create', 'apply', 'plan', 'down', 'completion', 'import', 'help') -contains $parts[1]) { @() }
		else { @(& %[1]s ls -q 2>$null) }
	$offer | Where-Object { $_ -like "$word*" } | ForEach-Object {
		[System.Management.Automation.CompletionResult]::new($_, $_, 'ParameterValue', $_)
	}
}
`,
}

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{Name: "completion", Usage: "Print a completion script for bash, zsh, fish or powershell", ArgsUsage: "SHELL",
		Action: func(c *cli.Context) error {
			script, ok := completionScripts[c.Args().First()]
			if !ok {
				return errors.New("completion: name a shell: bash, zsh, fish or powershell")
			}
			names := ""
			for _, cmd := range c.App.Commands {
				names += cmd.Name + " "
			}
			fmt.Fprintf(p.stdout, script, p.name, names)
			return nil
		}}
}
