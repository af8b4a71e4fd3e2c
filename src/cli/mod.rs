//! What the binary does: one file per subcommand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Vocabulary;

mod run;
pub mod check;
pub mod ctl;
pub mod demo;
pub mod healthcheck;

const EXAMPLES: &str = "\
Examples:
  isobar demo                           see it work, with three copies of a small service
  isobar check --config lb.toml         look for mistakes, start nothing
  isobar --config /etc/isobar/lb.toml   serve
  isobar ctl backends                   look into the one that runs; isobar ctl --help has more

Signals:
  SIGHUP            reads the file again and opens log files anew, changed or not
  SIGUSR1           opens log files anew
  SIGTERM, SIGINT,  serve on for shutdown_delay, stop accepting, finish what runs within shutdown_grace, exit 0; a further one ends at once
  SIGQUIT
  SIGUSR2           starts the binary again with --replace: the new process takes over, this one finishes what it has
  SIGALRM, SIGPIPE, do nothing
  SIGWINCH

Exit codes:
  0         ended as asked; for check: the file can be used; for healthcheck: ready
  1         the configuration is refused or the start failed; for healthcheck: not ready
  2         the command line is wrong
  3, 4      of ctl: nobody answers; what was waited for has not come
  130, 131, 143
            ended at once by a further SIGINT, SIGQUIT or SIGTERM";

/// A reverse-proxy load balancer: one binary, one file, reloads without loss.
///
/// Without a command it runs. A changed file is applied within a second; a broken one changes nothing and is told of in the
/// log and at the admin address.
#[derive(Debug, Parser)]
#[command(name = "isobar", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as the file says, and follow its changes (what happens without a command)
    Run(Run),
    /// Look for mistakes in the file and start nothing
    Check(File),
    /// Show it working: three copies of a small service, three strategies, live counts
    Demo(demo::Options),
    /// Look into a running isobar and steer it: drain a backend, change a weight, listen to what happens
    Ctl(ctl::Options),
    /// Ask a running isobar whether it is ready: for a container's health check
    Healthcheck(Healthcheck),
}

#[derive(Args, Debug)]
struct Run {
    #[command(flatten)]
    file: File,
    /// Take over from the isobar that serves this file: its listening sockets first, then it stops. No connection is refused
    #[arg(long)]
    replace: bool,
}

#[derive(Args, Debug)]
struct File {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "lb.toml")]
    config: PathBuf,
}

#[derive(Args, Debug)]
struct Healthcheck {
    /// Its admin address, as in the file
    #[arg(long, value_name = "ADDRESS", default_value = healthcheck::ADMIN_DEFAULT)]
    admin: String,
}

/// Does what the command line says. Does not return where it says something that cannot be understood, or `--help`.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(Run { file: File { config }, replace }) => run::run(&config, replace),
        Command::Check(File { config }) => check::run(&config, &Vocabulary::default()),
        Command::Demo(options) => demo::run(&options),
        Command::Ctl(options) => ctl::run(options),
        Command::Healthcheck(Healthcheck { admin }) => match healthcheck::run(&admin) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
    }
}

/// Says why not, causes included, and what to exit with.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{}", chain(error));
    ExitCode::FAILURE
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{}: {error}", text.trim_end());
        cause = error.source();
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.kind())?;
        Ok(cli.command.unwrap_or(Command::Run(cli.run)))
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_a_command_it_runs() {
        for (line, file, replaces) in [
            ("isobar", "lb.toml", false),
            ("isobar --config x.toml", "x.toml", false),
            ("isobar -c x.toml", "x.toml", false),
            ("isobar run", "lb.toml", false),
            ("isobar run --config x.toml", "x.toml", false),
            ("isobar --replace", "lb.toml", true),
            ("isobar run --config x.toml --replace", "x.toml", true),
        ] {
            let Ok(Command::Run(Run { file: File { config }, replace })) = parse(line) else { panic!("{line}") };
            assert_eq!((config, replace), (PathBuf::from(file), replaces), "{line}");
        }
    }

    #[test]
    fn commands_have_their_own_flags() {
        assert!(
            matches!(parse("isobar check -c x.toml"), Ok(Command::Check(File { config })) if config.ends_with("x.toml"))
        );
        assert!(matches!(parse("isobar demo"), Ok(Command::Demo(_))));
        assert!(matches!(
            parse("isobar healthcheck"),
            Ok(Command::Healthcheck(Healthcheck { admin })) if admin == "127.0.0.1:9900"
        ));
        for line in
            ["isobar ctl upstreams", "isobar ctl --admin unix:/x weight u a:1 reset", "isobar ctl log debug --for 5m"]
        {
            assert!(matches!(parse(line), Ok(Command::Ctl(_))), "{line}");
        }
        for (line, error) in [
            ("isobar ctl", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("isobar ctl drain users", ErrorKind::MissingRequiredArgument),
            ("isobar ctl drain users a:1 --timeout 5s", ErrorKind::MissingRequiredArgument),
            ("isobar --version", ErrorKind::DisplayVersion),
            ("isobar --help", ErrorKind::DisplayHelp),
            ("isobar rn", ErrorKind::InvalidSubcommand),
            ("isobar --confg x", ErrorKind::UnknownArgument),
            ("isobar --config x check", ErrorKind::ArgumentConflict),
        ] {
            assert_eq!(parse(line).unwrap_err(), error, "{line}");
        }
    }

    #[test]
    fn the_exit_codes_are_documented() {
        let help = Cli::command().render_long_help().to_string();
        for said in ["Exit codes:", "SIGHUP", "lb.toml", "healthcheck"] {
            assert!(help.contains(said), "{said} in {help}");
        }
        assert_eq!(Cli::try_parse_from(["isobar", "--no"]).unwrap_err().exit_code(), 2);
    }
}
