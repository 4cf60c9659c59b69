//! The `probe` subcommand: asks a running server or router whether it is alive or ready, for the health checks of
//! containers.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use fastvideo_supervisor_core::causes::with_causes;
use fastvideo_supervisor_core::probe::{self, Question};

/// The flag that names a file of certificate authorities.
const CA_FILE: &str = "--ca-file";

const TEACHING: &str = "\
It asks once and prints nothing when all is well; else it prints why not. Without --ready it asks
/healthz: whether the process answers. With --ready it asks /readyz: whether a session would find a
worker. A server that loads its model is alive and not ready.

With https:// the server's certificate must be for the name in URL, and from an authority that this
system trusts or from one in --ca-file.

Examples:
  fastvideo-supervisor probe http://127.0.0.1:8000
  fastvideo-supervisor probe --ready --timeout 2 http://127.0.0.1:8000
  HEALTHCHECK CMD [\"fastvideo-supervisor\", \"probe\", \"http://127.0.0.1:8000\"]
      In a Dockerfile. For a router the same, with its port.

Exit codes: 0 yes, 1 no or no answer, 2 wrong arguments.";

/// The arguments of `probe`.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    url: String,
    question: Question,
    ca_file: Option<PathBuf>,
    timeout: Duration,
}

impl Args {
    pub(crate) fn command() -> Command {
        Command::new("probe")
            .about("Asks a running server or router whether it is alive, or ready")
            .after_help(TEACHING)
            .args([
                Arg::new("url")
                    .value_name("URL")
                    .required(true)
                    .help("The server, as http:// or https://"),
                Arg::new("ready")
                    .long("ready")
                    .action(ArgAction::SetTrue)
                    .help("Ask whether a session would find a worker"),
                Arg::new("ca-file")
                    .long("ca-file")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help(
                        "Certificate authorities (PEM) to trust instead of the system's, for https://",
                    ),
                Arg::new("timeout")
                    .long("timeout")
                    .value_name("SECONDS")
                    .value_parser(seconds)
                    .default_value("5")
                    .help("Time that the server has to answer"),
            ])
    }

    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        Self {
            url: matches.get_one("url").cloned().unwrap_or_default(),
            question: match matches.get_flag("ready") {
                true => Question::IsReady,
                false => Question::IsAlive,
            },
            ca_file: matches.get_one("ca-file").cloned(),
            timeout: matches.get_one("timeout").copied().unwrap_or_default(),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    match seconds {
        Some(Ok(time)) if !time.is_zero() => Ok(time),
        _ => Err("must be a number of seconds above 0".to_owned()),
    }
}

/// Runs the subcommand and returns its exit code.
pub(crate) fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let asked = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let ca_file = args.ca_file.as_deref();
        let asking = probe::ask(&args.url, args.question, ca_file, CA_FILE, args.timeout);
        let asked = runtime.block_on(asking);
        // A look-up of a name may take longer.
        runtime.shutdown_background();
        Ok(asked?)
    });
    match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // An error means that nobody reads the output.
            let _ = writeln!(io::stderr(), "error: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
