//! The `keys` subcommand: makes keys that let callers in.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use fastvideo_supervisor_core::auth::Role;
use fastvideo_supervisor_core::auth::key::{KeyHash, generate};
use fastvideo_supervisor_core::auth::key_set::{NAME_EXPECTED, is_name};
use fastvideo_supervisor_core::ingress::Origins;

const EXAMPLES: &str = "\
Examples:
  fastvideo-supervisor keys new --id acme-web --tenant acme --role user --origin https://app.acme.example
      A key for the tenant acme, which pages of that site may use.
  fastvideo-supervisor keys new --id ops --role admin --expires 2027-01-01T00:00:00Z
      A key for operators, until the end of a year.

The key is printed once, and kept nowhere. Its line goes into the file of `server.auth.keys_file`, which
the server reads again at SIGHUP; of the key it holds only the SHA-256 hash.";

/// The arguments of `keys new`.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    id: String,
    tenant: Option<String>,
    role: Role,
    origins: Vec<String>,
    expires: Option<String>,
}

impl Args {
    pub(crate) fn command() -> Command {
        let text = |name: &'static str, placeholder: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name(placeholder).help(help)
        };
        let new = Command::new("new")
            .about("Makes a key, and prints it with its line for the file of keys")
            .after_long_help(EXAMPLES)
            .arg(text("id", "NAME", "What the key is called in the log; no other key has this id")
                .required(true)
                .value_parser(name))
            .arg(text("tenant", "NAME", "Whose the sessions are that are opened with the key").value_parser(name))
            .arg(text("role", "ROLE", "user: what is the tenant's; metrics: metrics and the status; admin: everything")
                .required(true)
                .value_parser(["user", "metrics", "admin"]))
            .arg(text("origin", "ORIGIN", "A site whose pages may use the key, such as https://app.example.org; may be given several times")
                .action(ArgAction::Append)
                .value_parser(origin))
            .arg(text("expires", "TIME", "When the key ends, such as 2027-01-01T00:00:00Z").value_parser(time));
        Command::new("keys")
            .about("Makes keys that let callers in")
            .subcommand_required(true)
            .subcommand(new)
    }

    /// # Errors
    /// Returns an error when the arguments contradict each other.
    pub(crate) fn from_matches(
        matches: &ArgMatches,
        command: &mut Command,
    ) -> Result<Self, clap::Error> {
        let text = |name| matches.get_one::<String>(name).cloned();
        let role = text("role").and_then(|role| Role::parse(&role));
        let role = role.expect("clap takes nothing else");
        let tenant = text("tenant");
        if role == Role::User && tenant.is_none() {
            let message = "a key with the role `user` needs a `--tenant`\n";
            return Err(command.error(ErrorKind::MissingRequiredArgument, message));
        }
        let origins = matches.get_many::<String>("origin");
        Ok(Self {
            id: text("id").expect("clap asks for it"),
            tenant,
            role,
            origins: origins.into_iter().flatten().cloned().collect(),
            expires: text("expires"),
        })
    }

    /// Returns the line of the file for a key with that hash.
    fn line(&self, hash: KeyHash) -> String {
        let mut fields = vec![format!("id: {:?}", self.id)];
        if let Some(tenant) = &self.tenant {
            fields.push(format!("tenant: {tenant:?}"));
        }
        fields.push(format!("role: {}", self.role));
        // Digits alone would be read as a number.
        fields.push(format!("sha256: \"{hash}\""));
        if !self.origins.is_empty() {
            fields.push(format!("origins: {:?}", self.origins));
        }
        if let Some(expires) = &self.expires {
            fields.push(format!("expires: {expires}"));
        }
        format!("  - {{{}}}", fields.join(", "))
    }
}

/// Runs the subcommand and returns its exit code.
pub(crate) fn run(args: &Args) -> ExitCode {
    let key = generate();
    let line = args.line(KeyHash::of(&key));
    let text =
        format!("{key}\n\n# In the file of `server.auth.keys_file`, below `keys:`\n{line}\n");
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody has the key now.
        Err(_) => ExitCode::FAILURE,
    }
}

fn name(text: &str) -> Result<String, String> {
    match is_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("it must be {NAME_EXPECTED}")),
    }
}

fn origin(text: &str) -> Result<String, String> {
    match Origins::is_origin(text) {
        true => Ok(text.to_owned()),
        false => Err("it must be an origin such as https://app.example.org".to_owned()),
    }
}

fn time(text: &str) -> Result<String, String> {
    let time = humantime::parse_rfc3339(text);
    let time = time.map_err(|_| "it must be a time such as 2027-01-01T00:00:00Z".to_owned());
    time.map(|_| text.to_owned())
}
