//! The command line, generated from the table of configuration keys.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use fastvideo_supervisor_core::settings::KeySpec;

use crate::config::Options;
use crate::config::keys::{ROUTER, SERVER, Table};
use crate::{check, client, keys, manual, probe, router, sessions};

/// The task of this process, according to its command line.
#[derive(Debug)]
pub(crate) enum Invocation {
    Serve(Options),
    Check(check::Args),
    Client(Box<client::Args>),
    Sessions(sessions::Args),
    Router(router::Args),
    Manual(manual::Args),
    Probe(probe::Args),
    NewKey(keys::Args),
}

const EXAMPLES: &str = "\
Examples:
  fastvideo-supervisor --gpus 8
      One worker on each of eight GPUs, everything else by default.
  fastvideo-supervisor --gpus 2 --engine synthetic --port 0
      Test pictures from two workers, on any free port; needs no GPU.
  fastvideo-supervisor --config serve.yaml --streaming.warmup.enabled false
      A FastVideo serve file, with one key changed.
  fastvideo-supervisor check --config serve.yaml
      Tries what the server would open, and prints what would hold and where it comes from.
  fastvideo-supervisor client --url ws://127.0.0.1:8000 --prompt 'A red fox in the snow' -o fox.mp4
      Generates a video from a running server.";

const CHECKING: &str = "\
check prints the configuration as a file, with a comment for each thing that it looked at:
  # ok|failed|not tried: WHAT: WHY
It binds the address for a moment, opens the store, writes to the folder of the session log, loads the
safety filter, asks the worker program for engine, model and encoder, and looks for the GPUs. It loads
no model, starts no worker, and asks no language model. Run it as the user that the server runs as, and
while the server does not run: a running one holds the address and a store in files.";

const ROUTING: &str = "\
Examples:
  fastvideo-supervisor router --config router.yaml
      The servers of the file, on port 9000:
        router:
          replicas:
            - url: http://streamer-a:8000
              primary: true
            - url: http://streamer-b:8000
  fastvideo-supervisor router --port 0 --replicas '[{\"url\": \"http://127.0.0.1:8000\"}]'
      One server, on any free port, without a file.
  fastvideo-supervisor router check --config router.yaml
      Prints what would hold and where it comes from, and whether each server answers.

A session goes to the primary while that is healthy, else to the first healthy server of the list.";

/// What `--config` names.
const SERVER_FILE: &str = "Configuration file (FastVideo's serve.yaml)";
const ROUTER_FILE: &str = "Configuration file (FastVideo's router.yaml)";

const PRECEDENCE: &str = "\
Configuration:
  Every key can be given in the file (YAML: server.port is `port` in the section `server`), in the
  environment (FASTVIDEO_SERVER__PORT: upper case, two underscores for a dot) and as a flag
  (--server.port). Flags win over the environment, the environment over the file, the file over the
  defaults. Unknown keys and values out of range are errors; nothing starts before all is checked.

Exit codes:
  0 on a clean end, 1 on a failure, 2 on a wrong command line or configuration.";

/// Reads the arguments of this process.
///
/// # Errors
/// Returns an error for an invalid command line, and also for `--help` and `--version`: the error is then the text to
/// print, with exit code 0.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let before = options(&SERVER, &matches);
    Ok(match matches.subcommand() {
        Some(("check", matches)) => Invocation::Check(check::Args {
            options: before.overridden_by(options(&SERVER, matches)),
            offline: matches.get_flag("offline"),
        }),
        Some(("client", matches)) => {
            refuse_options("client", &before)?;
            Invocation::Client(Box::new(client::Args::from_matches(matches)))
        }
        Some(("probe", matches)) => {
            refuse_options("probe", &before)?;
            Invocation::Probe(probe::Args::from_matches(matches))
        }
        Some(("sessions", matches)) => match matches.subcommand() {
            Some(("list", matches)) => Invocation::Sessions(sessions::Args::List {
                folder: matches.get_one("folder").cloned(),
                options: before.overridden_by(options(&SERVER, matches)),
            }),
            Some(("replay", matches)) => {
                let options = before.overridden_by(options(&SERVER, matches));
                Invocation::Sessions(sessions::Args::Replay(
                    sessions::replay::Args::from_matches(matches, options),
                ))
            }
            Some((_, matches)) => {
                refuse_options("sessions show", &before)?;
                Invocation::Sessions(sessions::Args::show(matches))
            }
            None => unreachable!("clap asks for a subcommand"),
        },
        Some(("router", matches)) => {
            refuse_options("router", &before)?;
            let before = options(&ROUTER, matches);
            Invocation::Router(match matches.subcommand() {
                Some((_, matches)) => {
                    router::Args::Check(before.overridden_by(options(&ROUTER, matches)))
                }
                None => router::Args::Serve(before),
            })
        }
        Some(("manual", matches)) => {
            refuse_options("manual", &before)?;
            let folder = matches.get_one::<PathBuf>("folder").cloned();
            Invocation::Manual(manual::Args {
                folder: folder.expect("clap requires it"),
            })
        }
        Some(("keys", matches)) => {
            refuse_options("keys", &before)?;
            let (_, matches) = matches.subcommand().expect("clap asks for a subcommand");
            Invocation::NewKey(keys::Args::from_matches(matches, &mut command())?)
        }
        _ => Invocation::Serve(before),
    })
}

/// Refuses options of the server before a subcommand that does not read its configuration.
fn refuse_options(subcommand: &str, options: &Options) -> Result<(), clap::Error> {
    let flag = match (&options.file, options.flags.first()) {
        (Some(_), _) => "config",
        (None, Some((key, _))) => key.flag(),
        (None, None) => return Ok(()),
    };
    let message = format!("the argument '--{flag}' has no effect on '{subcommand}'\n");
    Err(command().error(ErrorKind::ArgumentConflict, message))
}

fn command() -> Command {
    documented().subcommand(
        Command::new("manual")
            .about("Writes manual pages and completions for shells, for packages")
            .hide(true)
            .arg(
                Arg::new("folder")
                    .value_name("FOLDER")
                    .required(true)
                    .value_parser(value_parser!(PathBuf))
                    .help("Existing folder to write to"),
            ),
    )
}

/// The command line as people see it.
pub(crate) fn documented() -> Command {
    Command::new("fastvideo-supervisor")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves realtime video generation, segment by segment, from many GPUs")
        .after_help("--help shows every configuration key, and examples.")
        .after_long_help(format!("{EXAMPLES}\n\n{PRECEDENCE}"))
        .args_override_self(true)
        .args(configuration(&SERVER, SERVER_FILE))
        .subcommand(
            Command::new("check")
                .about(
                    "Checks the configuration, tries what the server would open, and prints both",
                )
                .after_long_help(format!("{CHECKING}\n\n{PRECEDENCE}"))
                .args_override_self(true)
                .arg(
                    Arg::new("offline")
                        .long("offline")
                        .action(ArgAction::SetTrue)
                        .help("Check the configuration alone; open nothing and start nothing"),
                )
                .args(configuration(&SERVER, SERVER_FILE)),
        )
        .subcommand(client::Args::command())
        .subcommand(sessions::Args::command(configuration(&SERVER, SERVER_FILE)))
        .subcommand(router_command())
        .subcommand(probe::Args::command())
        .subcommand(keys::Args::command())
}

fn router_command() -> Command {
    Command::new("router")
        .about("Takes sessions at one address and sends each to one of many servers")
        .after_help("--help shows every configuration key, and examples.")
        .after_long_help(format!("{ROUTING}\n\n{PRECEDENCE}"))
        .args_override_self(true)
        .args(configuration(&ROUTER, ROUTER_FILE))
        .subcommand(
            Command::new("check")
                .about("Checks the configuration, asks each server once, and prints both")
                .after_long_help(PRECEDENCE)
                .args_override_self(true)
                .args(configuration(&ROUTER, ROUTER_FILE)),
        )
}

fn configuration(table: &Table, file: &'static str) -> impl Iterator<Item = Arg> {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help(file);
    // Keys with a short flag come first, because clap shows headings in the order in which it meets them.
    let (short, long): (Vec<&KeySpec>, Vec<&KeySpec>) =
        table.all().partition(|key| key.short.is_some());
    [file]
        .into_iter()
        .chain(short.into_iter().chain(long).map(flag))
}

fn flag(key: &'static KeySpec) -> Arg {
    let default = key.default.map(|value| format!("[default: {value}]"));
    let limits = key.kind.limits();
    let also = key.short.map(|_| format!("[also: --{}]", key.path));
    let details = [&default, &limits, &also].into_iter().flatten();
    let long_help = details.fold(key.help.to_owned(), |help, detail| help + " " + detail);
    let help = [key.help].into_iter().chain(default.as_deref());
    // clap gets no list of possible values: a value is checked where its key and origin can be named, for all layers
    // alike.
    let arg = Arg::new(key.path)
        .long(key.flag())
        .value_name(key.kind.placeholder())
        .action(ArgAction::Set)
        .allow_negative_numbers(true)
        .help(help.collect::<Vec<_>>().join(" "))
        .long_help(long_help);
    match key.short {
        Some(_) => arg.alias(key.path),
        None => arg.hide_short_help(true).help_heading(key.section()),
    }
}

fn options(table: &'static Table, matches: &ArgMatches) -> Options {
    let flag = |key: &'static KeySpec| Some((key, matches.get_one::<String>(key.path)?.clone()));
    Options {
        table,
        file: matches.get_one("config").cloned(),
        flags: table.all().filter_map(flag).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Invocation, clap::Error> {
        let all = std::iter::once("fastvideo-supervisor").chain(arguments.split_whitespace());
        super::parse(all.map(OsString::from))
    }

    #[test]
    fn command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn flags_are_read_by_both_names() {
        let check = |arguments: &str, expected: &[(&str, &str)]| {
            let options = match parse(arguments).unwrap() {
                Invocation::Serve(options) => options,
                Invocation::Check(args) => args.options,
                other => panic!("{arguments}: {other:?}"),
            };
            let flags: Vec<(&str, &str)> = options
                .flags
                .iter()
                .map(|(key, value)| (key.path, value.as_str()))
                .collect();
            assert_eq!(flags, expected, "{arguments}");
        };
        check("", &[]);
        check("--gpus 8", &[("streaming.pool.gpus", "8")]);
        check("--streaming.pool.gpus 8", &[("streaming.pool.gpus", "8")]);
        check("--gpus 8 --gpus 2", &[("streaming.pool.gpus", "2")]);
        check("--server.port=-1", &[("server.port", "-1")]);
        check("--server.port -1", &[("server.port", "-1")]);
        check(
            "check --streaming.warmup.enabled false",
            &[("streaming.warmup.enabled", "false")],
        );
        check(
            "--gpus 8 --port 1 check --gpus 2 --offline",
            &[("server.port", "1"), ("streaming.pool.gpus", "2")],
        );
    }

    #[test]
    fn options_may_stand_before_the_subcommands_that_read_them() {
        let Invocation::Check(args) = parse("--config a.yaml check").unwrap() else {
            panic!("a check");
        };
        assert_eq!(args.options.file, Some(PathBuf::from("a.yaml")));
        let Invocation::Check(args) = parse("--config a.yaml check --config b.yaml").unwrap()
        else {
            panic!("a check");
        };
        assert_eq!(args.options.file, Some(PathBuf::from("b.yaml")));
        assert!(parse("--config a.yaml sessions list").is_ok());
        for refused in [
            "--log-level debug client --prompt x",
            "--config a.yaml sessions show x.jsonl",
        ] {
            let error = parse(refused).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("has no effect on"), "{error}");
        }
    }

    #[test]
    fn mistyped_flag_leads_to_the_right_one() {
        let error = parse("--streaming.sesion_timeout_seconds 60").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error
                .to_string()
                .contains("--streaming.session_timeout_seconds"),
            "{error}"
        );
    }

    #[test]
    fn a_router_has_keys_of_its_own() {
        let Invocation::Router(router::Args::Serve(options)) =
            parse("router --config a.yaml --port 1").unwrap()
        else {
            panic!("a router");
        };
        let flags: Vec<_> = options.flags.iter().map(|(key, _)| key.path).collect();
        assert_eq!(flags, ["router.port"]);
        let Invocation::Router(router::Args::Check(options)) =
            parse("router --port 1 check --router.port 2").unwrap()
        else {
            panic!("a check");
        };
        assert_eq!(options.flags[0].1, "2");
        assert_eq!(parse("router --gpus 8").unwrap_err().exit_code(), 2);
        assert!(parse("--gpus 8 router").is_err());
        let help = parse("router --help").unwrap_err().to_string();
        for key in ROUTER.all() {
            assert!(help.contains(&format!("--{}", key.flag())), "{}", key.path);
        }
    }

    #[test]
    fn help_names_every_key() {
        let help = parse("--help").unwrap_err().to_string();
        for key in SERVER.all() {
            assert!(help.contains(&format!("--{}", key.flag())), "{}", key.path);
        }
    }
}
