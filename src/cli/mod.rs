//! What the binary does: one file per subcommand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Vocabulary;
use admin_address::AdminAddress;

mod run;
pub mod check;
pub mod ctl;
pub mod demo;
pub mod healthcheck;
pub mod admin_address;
mod schema;

const EXAMPLES: &str = "\
Examples:
  isobar demo                           see it work, with three copies of a small service
  isobar demo --registry                see services register themselves, come and go
  isobar check --config lb.toml         look for mistakes, start nothing
  isobar --config /etc/isobar/lb.toml   serve
  isobar ctl backends                   look into the isobar that runs; isobar ctl --help has more

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
  3, 4      for ctl: no isobar answers; what was waited for has not come in time
  70        stopped by itself after a panic of what it needs
  130, 131, 143
            ended at once by a further SIGINT, SIGQUIT or SIGTERM";

/// A reverse-proxy load balancer: one binary, one file, reloads without loss.
///
/// Without a command it serves. A changed file is applied within a second; one with mistakes changes nothing, and the log and the
/// admin address say what is wrong with it.
#[derive(Debug, Parser)]
#[command(name = "isobar", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Serve as the file says, and follow its changes (what happens without a command)
    Run(Run),
    /// Look for mistakes in the file and start nothing
    Check(FileArgs),
    /// Print the JSON schema of the file, for editors
    Schema,
    /// Show it working: three copies of a small service, three strategies, live counts
    Demo(demo::DemoOptions),
    /// Look into a running isobar and steer it: drain a backend, change a weight, follow events
    Ctl(ctl::CtlOptions),
    /// Ask a running isobar whether it is ready: for a container's health check
    Healthcheck(Healthcheck),
}

#[derive(Args, Debug)]
struct Run {
    #[command(flatten)]
    file: FileArgs,
    /// Take over from the isobar that serves this file: its listening sockets first, then it stops. No connection is refused
    #[arg(long)]
    replace: bool,
}

#[derive(Args, Debug)]
struct FileArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = "lb.toml")]
    config: PathBuf,
}

#[derive(Args, Debug)]
struct Healthcheck {
    /// Where it is asked, an address or unix:PATH; 127.0.0.1:9900 where neither this nor --config is given
    #[arg(long, value_name = "ADDRESS", conflicts_with = "config")]
    admin: Option<String>,
    /// The configuration file that says where it is asked: at its unix_socket if that is there, else at its address
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Does what the command line says. Does not return where it says something that cannot be understood, or `--help`.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.unwrap_or(CliCommand::Run(cli.run)) {
        CliCommand::Run(Run { file: FileArgs { config }, replace }) => run::run(&config, replace),
        CliCommand::Check(FileArgs { config }) => check::run(&config, &Vocabulary::default()),
        CliCommand::Schema => schema::run(),
        CliCommand::Demo(options) => demo::run(&options),
        CliCommand::Ctl(options) => ctl::run(options),
        CliCommand::Healthcheck(options) => match options.place() {
            Ok(place) => healthcheck::run(&place).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS),
            Err(error) => fail(&error),
        },
    }
}

impl Healthcheck {
    fn place(&self) -> Result<AdminAddress, admin_address::Unknown> {
        match (&self.admin, &self.config) {
            (Some(admin), _) => Ok(AdminAddress::parse(admin)),
            (None, Some(file)) => AdminAddress::of_file(file).map(|(place, _)| place),
            (None, None) => Ok(AdminAddress::default()),
        }
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
    use std::path::Path;

    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<CliCommand, ErrorKind> {
        let cli = Cli::try_parse_from(line.split_whitespace()).map_err(|error| error.kind())?;
        Ok(cli.command.unwrap_or(CliCommand::Run(cli.run)))
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
            let Ok(CliCommand::Run(Run { file: FileArgs { config }, replace })) = parse(line) else { panic!("{line}") };
            assert_eq!((config, replace), (PathBuf::from(file), replaces), "{line}");
        }
    }

    #[test]
    fn commands_have_their_own_flags() {
        assert!(
            matches!(parse("isobar check -c x.toml"), Ok(CliCommand::Check(FileArgs { config })) if config.ends_with("x.toml"))
        );
        assert!(matches!(parse("isobar demo"), Ok(CliCommand::Demo(_))));
        for (line, asked) in [
            ("isobar healthcheck", "127.0.0.1:9900"),
            ("isobar healthcheck --admin lb1:99", "lb1:99"),
            ("isobar healthcheck --admin unix:/x", "unix:/x"),
        ] {
            let Ok(CliCommand::Healthcheck(options)) = parse(line) else { panic!("{line}") };
            assert_eq!(options.place().unwrap().to_string(), asked, "{line}");
        }
        // Each flag of its own, although other commands have the same.
        for (line, file) in [
            ("isobar ctl backends", None),
            ("isobar ctl -c x.toml backends", Some("x.toml")),
            ("isobar ctl backends --config x.toml", Some("x.toml")),
        ] {
            let Ok(CliCommand::Ctl(options)) = parse(line) else { panic!("{line}") };
            assert_eq!(options.file(), file.map(Path::new), "{line}");
        }
        for line in
            ["isobar ctl upstreams", "isobar ctl --admin unix:/x weight u a:1 reset", "isobar ctl log debug --for 5m"]
        {
            assert!(matches!(parse(line), Ok(CliCommand::Ctl(_))), "{line}");
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
            ("isobar healthcheck --config x --admin y", ErrorKind::ArgumentConflict),
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
