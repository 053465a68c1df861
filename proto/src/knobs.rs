//! How the processes read their knobs: one set of names, three places to write them.
//!
//! A process declares its knobs once, as a struct that derives [`clap::Parser`]; a field
//! `ping_interval` is then
//!
//! | where | how it is written | wins over |
//! |---|---|---|
//! | command line | `--ping-interval 30s` | everything |
//! | environment | `HAWSER_EDGE_PING_INTERVAL=30s` | file, default |
//! | TOML file named by `--config FILE` | `ping_interval = "30s"` | default |
//!
//! The file and the environment are turned into arguments that stand before the real ones, and the
//! later wins, so a value is parsed by one parser wherever it was written. A list knob is taken from
//! the highest place that gives it, never mixed. A flag without a value (`--dev-auth`) means true;
//! `--dev-auth=false` takes back what a file has set. A wrong value is refused even where a higher
//! place overrides it.
//!
//! What is wrong is told in one sentence that names the knob, what it got and what is allowed, with
//! exit status 64 ([`UsageError`]). Checks between knobs belong to the process.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command};

mod effective;
mod values;

pub use effective::{Effective, Knobs, Origin, differences, to_toml};
pub use values::{Unfit, byte_size, count, duration, identifier, socket_address};

/// Exit status of a process that was started wrongly (`EX_USAGE` of sysexits.h).
pub const USAGE_EXIT_STATUS: i32 = 64;

/// Something the operator wrote, or a limit of the machine, does not let the process start. Holds one
/// sentence without the program's name: which knob, what it got, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError(pub String);

impl UsageError {
    /// Prints `program: sentence` on stderr and ends the process with [`USAGE_EXIT_STATUS`].
    pub fn exit(&self, program: &str) -> ! {
        eprintln!("{program}: {self}");
        std::process::exit(USAGE_EXIT_STATUS)
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Why [`read`] gave no knobs.
#[derive(Debug)]
pub enum Unread {
    /// `--help` or `--version` was asked for: print it on stdout, exit status 0.
    Asked(clap::Error),
    /// Something is wrong.
    Usage(UsageError),
}

impl Unread {
    /// Prints what there is to say and ends the process, with status 0 or 64.
    pub fn exit(&self, program: &str) -> ! {
        match self {
            Unread::Asked(text) => text.exit(),
            Unread::Usage(error) => error.exit(program),
        }
    }
}

impl From<UsageError> for Unread {
    fn from(error: UsageError) -> Unread {
        Unread::Usage(error)
    }
}

/// Reads the knobs of this process from its arguments and environment; prints and exits when that
/// cannot be done ([`Unread::exit`]).
#[must_use]
pub fn from_process<T: clap::Parser>(prefix: &str) -> T {
    read(prefix, std::env::args_os(), std::env::vars_os())
        .unwrap_or_else(|unread| unread.exit(T::command().get_name()))
}

/// Reads the knobs `T` once; see [`Source`].
///
/// # Errors
/// See [`Unread`].
pub fn read<T: clap::Parser>(
    prefix: &str,
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<T, Unread> {
    Ok(Source::new(prefix, args, env).read()?.values)
}

/// Where the knobs of a process come from: its arguments (the program's name first), those variables of its environment
/// that start with a prefix and an underscore (`HAWSER_EDGE`), and the file that `--config` names, which may be read
/// again while the process runs.
///
/// A variable with the prefix that is no knob is refused like an unknown flag, except those that Kubernetes sets for a
/// service of the process's name.
#[derive(Debug, Clone)]
pub struct Source {
    prefix: String,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
}

impl Source {
    /// Reads nothing yet.
    pub fn new(
        prefix: &str,
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Source {
        let (args, env) = (args.into_iter().collect(), env.into_iter().collect());
        Source { prefix: prefix.to_owned(), args, env }
    }

    /// The knobs `T` as flags, environment and the file of this moment have them. Touches nothing else than that file.
    ///
    /// # Errors
    /// See [`Unread`].
    pub fn read<T: clap::Parser>(&self) -> Result<Knobs<T>, Unread> {
        self.read_file(|file| file)
    }

    /// The same for a process that runs by `running`: of the file of this moment, only knobs that `may_change` are
    /// taken, the others stay as the file had them before. Flags and environment cannot have changed.
    ///
    /// # Errors
    /// See [`Unread`]. A wrong value of a knob that stays is not noticed: [`Source::read`] does.
    pub fn read_again<T: clap::Parser>(
        &self,
        running: &Knobs<T>,
        may_change: impl Fn(&str) -> bool,
    ) -> Result<Knobs<T>, Unread> {
        self.read_file(|mut file| {
            file.retain(|setting| may_change(&setting.knob));
            file.extend(running.file.iter().filter(|s| !may_change(&s.knob)).cloned());
            file
        })
    }

    fn read_file<T: clap::Parser>(
        &self,
        choose: impl FnOnce(Vec<Setting>) -> Vec<Setting>,
    ) -> Result<Knobs<T>, Unread> {
        let command = knob_command(T::command(), &self.prefix);
        // Help is given even when a file or a variable is wrong.
        if let Err(error) = command.clone().try_get_matches_from(&self.args)
            && matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
        {
            return Err(Unread::Asked(error));
        }

        let (program, flags) =
            self.args.split_first().map_or((None, &[][..]), |(p, f)| (Some(p), f));
        let env = env_settings(&command, &self.prefix, self.env.iter().cloned())?;
        let file = match config_path(flags, &env) {
            Some(path) => choose(file_settings(&command, &path)?),
            None => Vec::new(),
        };
        let mut below: Vec<Setting> = file.iter().cloned().chain(env).collect();
        drop_overridden_lists(&command, &mut below, flags);

        let line = program
            .cloned()
            .into_iter()
            .chain(below.iter().map(Setting::argument))
            .chain(flags.iter().cloned());
        let sentence = |error| UsageError(sentence(&error, &below));
        let mut matches = command.clone().try_get_matches_from(line).map_err(sentence)?;
        let effective = effective::all(&command, &matches, &below, flags);
        let values = T::from_arg_matches_mut(&mut matches).map_err(sentence)?;
        Ok(Knobs { values, effective, file })
    }
}

/// The process's command with what every process has: `--config`, flags that can be taken back, the
/// later value winning, and an explanation of the three places.
fn knob_command(command: Command, prefix: &str) -> Command {
    command
        .args_override_self(true)
        .mut_args(|arg| {
            if !matches!(arg.get_action(), ArgAction::SetTrue) {
                return arg;
            }
            arg.action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_name("true|false")
                .default_value("false")
                .default_missing_value("true")
                .hide_default_value(true)
                .hide_possible_values(true)
        })
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("TOML file with knobs, such as ping_interval = \"30s\""),
        )
        .after_help(format!(
            "Every knob can be written in three places: as a flag (--some-knob), in the environment \
             ({prefix}_SOME_KNOB), or in the file named by --config (some_knob). Flags win over the \
             environment, the environment over the file."
        ))
}

/// One knob's value as the file or the environment gives it.
#[derive(Debug, Clone)]
struct Setting {
    /// Name in the style of a field: `ping_interval`.
    knob: String,
    value: OsString,
    place: Place,
    /// How to name knob and place to the operator.
    origin: String,
}

/// In rising order of what wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    File,
    Environment,
}

impl Setting {
    fn argument(&self) -> OsString {
        let mut argument = OsString::from(flag_name(&self.knob));
        argument.push("=");
        argument.push(&self.value);
        argument
    }
}

fn flag_name(knob: &str) -> String {
    format!("--{}", knob.replace('_', "-"))
}

/// The declared knob of this name; `help` and `version` are flags, not knobs.
fn find_knob<'a>(command: &'a Command, knob: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| {
        arg.get_long().is_some_and(|long| long.replace('-', "_") == knob)
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            )
    })
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

fn env_settings(
    command: &Command,
    prefix: &str,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Setting>, UsageError> {
    let mut settings = Vec::new();
    for (name, value) in env {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) else {
            continue;
        };
        let knob = rest.to_ascii_lowercase();
        if find_knob(command, &knob).is_some() {
            let (place, origin) = (Place::Environment, name.to_owned());
            settings.push(Setting { knob, value, place, origin });
        } else if rest != "PORT" && !rest.starts_with("PORT_") && !rest.starts_with("SERVICE_") {
            return Err(UsageError(format!(
                "{name}: the environment sets a knob that does not exist; --help lists those that do"
            )));
        }
    }
    // The order in which a system lists its environment means nothing; errors should not depend on it.
    settings.sort_by(|a, b| a.knob.cmp(&b.knob));
    Ok(settings)
}

/// The file named on the command line, else in the environment.
fn config_path(flags: &[OsString], env: &[Setting]) -> Option<PathBuf> {
    let mut path = env.iter().find(|s| s.knob == "config").map(|s| PathBuf::from(&s.value));
    let mut flags = flags.iter().take_while(|flag| *flag != "--");
    while let Some(flag) = flags.next() {
        if flag == "--config" {
            // Nothing after it: the parser says so.
            path = flags.next().map(PathBuf::from).or(path);
        } else if let Some(value) = flag.to_str().and_then(|flag| flag.strip_prefix("--config=")) {
            path = Some(PathBuf::from(value));
        }
    }
    path
}

fn file_settings(command: &Command, path: &Path) -> Result<Vec<Setting>, UsageError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| UsageError(format!("--config: {shown} cannot be read: {error}")))?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
        });
        UsageError(format!(
            "--config: {shown} is not TOML at line {line}: {}",
            error.message().replace('\n', ", ")
        ))
    })?;

    let mut settings = Vec::new();
    for (knob, value) in table {
        let origin = format!("{knob} in {shown}");
        let Some(arg) = find_knob(command, &knob).filter(|arg| arg.get_id() != "config") else {
            return Err(UsageError(unknown_key(command, &knob, &origin)));
        };
        let values = if let toml::Value::Array(values) = value {
            if !is_list(arg) {
                return Err(UsageError(format!("{origin}: is a list, allowed is one value")));
            }
            values
        } else {
            vec![value]
        };
        for value in values {
            let Some(value) = plain_value(&value) else {
                return Err(UsageError(format!(
                    "{origin}: is a {}, allowed is a text, a number or true and false",
                    value.type_str()
                )));
            };
            settings.push(Setting {
                knob: knob.clone(),
                value: value.into(),
                place: Place::File,
                origin: origin.clone(),
            });
        }
    }
    Ok(settings)
}

fn unknown_key(command: &Command, key: &str, origin: &str) -> String {
    let near = key.replace('-', "_").to_ascii_lowercase();
    match find_knob(command, &near).filter(|arg| arg.get_id() != "config") {
        Some(_) => format!("{origin}: there is no such knob, but there is {near}"),
        None => format!("{origin}: there is no such knob; --help lists them"),
    }
}

fn plain_value(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

/// Lists add up within one place; across places the highest counts alone.
fn drop_overridden_lists(command: &Command, below: &mut Vec<Setting>, flags: &[OsString]) {
    let in_env: BTreeSet<String> = below
        .iter()
        .filter(|setting| setting.place == Place::Environment)
        .map(|setting| setting.knob.clone())
        .collect();
    below.retain(|Setting { knob, place, .. }| {
        let overridden = flags.iter().any(|flag| is_flag_of(flag, knob))
            || *place == Place::File && in_env.contains(knob);
        !(overridden && find_knob(command, knob).is_some_and(is_list))
    });
}

fn is_flag_of(argument: &OsStr, knob: &str) -> bool {
    let name = flag_name(knob);
    argument
        .to_str()
        .and_then(|text| text.strip_prefix(name.as_str()))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// The parser's complaint as one sentence that names the knob where it was written.
fn sentence(error: &clap::Error, below: &[Setting]) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(" ")),
        _ => None,
    };
    let Some(arg) = text(ContextKind::InvalidArg) else { return first_line(error) };
    // clap names an argument with its placeholder: `--ping-interval <DURATION>`.
    let flag = arg.split([' ', '=', '[']).next().unwrap_or(&arg);
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let origin = below
        .iter()
        .find(|setting| flag_name(&setting.knob) == flag && setting.value == value.as_str())
        .map_or(flag, |setting| &setting.origin);

    #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is told in clap's own words")]
    match error.kind() {
        ErrorKind::ValueValidation => match std::error::Error::source(error) {
            Some(source) if source.is::<Unfit>() => format!("{origin}: \"{value}\" {source}"),
            Some(source) => format!("{origin}: \"{value}\" is refused: {source}"),
            None => format!("{origin}: \"{value}\" is refused"),
        },
        ErrorKind::InvalidValue if value.is_empty() => format!("{origin}: a value is missing"),
        ErrorKind::InvalidValue => {
            let allowed = text(ContextKind::ValidValue).unwrap_or_default().replace(' ', ", ");
            format!("{origin}: \"{value}\" is not one of those allowed: {allowed}")
        }
        ErrorKind::UnknownArgument => match text(ContextKind::SuggestedArg) {
            Some(near) => format!("{origin}: there is no such flag, but there is {near}"),
            None => format!("{origin}: there is no such flag; --help lists them"),
        },
        ErrorKind::MissingRequiredArgument => format!("{flag}: is missing"),
        ErrorKind::TooManyValues => format!("{origin}: takes no value like \"{value}\""),
        _ => first_line(error),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::SocketAddr;
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Parser, Debug, PartialEq)]
    #[command(name = "hawser-test", version = "1.2.3")]
    struct Knobs {
        /// How often.
        #[arg(long, value_name = "DURATION", default_value = "15s",
              value_parser = duration(Duration::from_secs(1)..=Duration::from_secs(600)))]
        ping_interval: Duration,
        #[arg(long, default_value = "64KiB", value_parser = byte_size(1..=1024 * 1024))]
        payload_bytes_max: usize,
        #[arg(long, default_value = "10000", value_parser = count::<u32>(1..=1_000_000))]
        connections_max: u32,
        #[arg(long, default_value = "127.0.0.1:8080", value_parser = socket_address)]
        listen: SocketAddr,
        #[arg(long)]
        dev_auth: bool,
        #[arg(long)]
        origins: Vec<String>,
        #[arg(long)]
        echo_path: Option<String>,
    }

    fn read_with(flags: &[&str], env: &[(&str, &str)]) -> Result<Knobs, Unread> {
        let args = std::iter::once("hawser-test").chain(flags.iter().copied()).map(OsString::from);
        read("HAWSER_TEST", args, env.iter().map(|(name, value)| (name.into(), value.into())))
    }

    fn knobs(flags: &[&str], env: &[(&str, &str)]) -> Knobs {
        read_with(flags, env).unwrap()
    }

    fn complaint(flags: &[&str], env: &[(&str, &str)]) -> String {
        match read_with(flags, env) {
            Err(Unread::Usage(UsageError(sentence))) => sentence,
            other => panic!("no usage error: {other:?}"),
        }
    }

    struct File(tempfile::NamedTempFile);

    impl File {
        fn with(text: &str) -> File {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            File(file)
        }

        fn flag(&self) -> String {
            format!("--config={}", self.path())
        }

        fn path(&self) -> String {
            self.0.path().display().to_string()
        }
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_file_and_that_over_the_default() {
        let file = File::with("ping_interval = \"40s\"\n");
        let env = [("HAWSER_TEST_PING_INTERVAL", "30s")];
        let seconds = |knobs: Knobs| knobs.ping_interval.as_secs();
        assert_eq!(seconds(knobs(&[], &[])), 15);
        assert_eq!(seconds(knobs(&[&file.flag()], &[])), 40);
        assert_eq!(seconds(knobs(&[&file.flag()], &env)), 30);
        assert_eq!(seconds(knobs(&[&file.flag(), "--ping-interval", "20s"], &env)), 20);
        assert_eq!(seconds(knobs(&["--ping-interval=20s", &file.flag()], &env)), 20);
        assert_eq!(seconds(knobs(&["--ping-interval=20s", "--ping-interval=21s"], &env)), 21);
    }

    #[test]
    fn the_file_can_be_named_in_the_environment() {
        let file = File::with("connections_max = 7");
        let env = [("HAWSER_TEST_CONFIG", file.path())];
        let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
        assert_eq!(knobs(&[], &env).connections_max, 7);
    }

    #[test]
    fn every_kind_of_value_can_stand_in_a_file() {
        let file = File::with(
            "payload_bytes_max = 4096\nconnections_max = \"1_000_000\"\nlisten = \"[::1]:9\"\n\
             dev_auth = true\norigins = [\"a\", \"b\"]\necho_path = \"/echo\"\n",
        );
        assert_eq!(
            knobs(&[&file.flag()], &[]),
            Knobs {
                ping_interval: Duration::from_secs(15),
                payload_bytes_max: 4096,
                connections_max: 1_000_000,
                listen: "[::1]:9".parse().unwrap(),
                dev_auth: true,
                origins: vec!["a".to_owned(), "b".to_owned()],
                echo_path: Some("/echo".to_owned()),
            }
        );
    }

    #[test]
    fn a_flag_that_a_file_has_set_can_be_taken_back() {
        let file = File::with("dev_auth = true");
        assert!(knobs(&["--dev-auth"], &[]).dev_auth);
        assert!(!knobs(&[&file.flag(), "--dev-auth=false"], &[]).dev_auth);
        assert!(!knobs(&[&file.flag()], &[("HAWSER_TEST_DEV_AUTH", "false")]).dev_auth);
    }

    #[test]
    fn a_list_comes_whole_from_the_highest_place() {
        let file = File::with("origins = [\"a\", \"b\"]");
        let env = [("HAWSER_TEST_ORIGINS", "c")];
        assert_eq!(knobs(&[&file.flag()], &[]).origins, ["a", "b"]);
        assert_eq!(knobs(&[&file.flag()], &env).origins, ["c"]);
        let flags = [&file.flag(), "--origins", "d", "--origins=e"];
        assert_eq!(knobs(&flags, &env).origins, ["d", "e"]);
    }

    #[test]
    fn a_wrong_value_is_told_with_the_place_it_was_written_in() {
        let allowed = "\"30x\" is not a duration such as 30s; allowed are 1s to 10m";
        assert_eq!(
            complaint(&["--ping-interval", "30x"], &[]),
            format!("--ping-interval: {allowed}")
        );
        assert_eq!(
            complaint(&[], &[("HAWSER_TEST_PING_INTERVAL", "30x")]),
            format!("HAWSER_TEST_PING_INTERVAL: {allowed}")
        );
        let file = File::with("ping_interval = \"30x\"");
        assert_eq!(
            complaint(&[&file.flag()], &[]),
            format!("ping_interval in {}: {allowed}", file.path())
        );
    }

    #[test]
    fn each_value_parser_says_what_is_allowed() {
        let told = |flag: &str| complaint(&[flag], &[]);
        assert_eq!(
            told("--ping-interval=11m"),
            "--ping-interval: \"11m\" is out of range; allowed are 1s to 10m"
        );
        assert_eq!(
            told("--payload-bytes-max=2MiB"),
            "--payload-bytes-max: \"2MiB\" is out of range; allowed are 1 B to 1.0 MiB"
        );
        assert_eq!(
            told("--payload-bytes-max=big"),
            "--payload-bytes-max: \"big\" is not a size such as 64KiB; allowed are 1 B to 1.0 MiB"
        );
        assert_eq!(
            told("--connections-max=-1"),
            "--connections-max: \"-1\" is not a number; allowed are 1 to 1000000"
        );
        assert_eq!(
            told("--connections-max=99999999999999999999"),
            "--connections-max: \"99999999999999999999\" is out of range; allowed are 1 to 1000000"
        );
        assert_eq!(
            told("--listen=localhost"),
            "--listen: \"localhost\" is not an address and port such as 127.0.0.1:8080 or [::]:8080"
        );
        assert_eq!(
            told("--dev-auth=yes"),
            "--dev-auth: \"yes\" is not one of those allowed: true, false"
        );
        assert_eq!(told("--ping-interval"), "--ping-interval: a value is missing");
        assert_eq!(told("--config"), "--config: a value is missing");
    }

    #[test]
    fn unknown_names_are_refused_in_every_place() {
        assert_eq!(
            complaint(&["--ping-intervall=1s"], &[]),
            "--ping-intervall: there is no such flag, but there is --ping-interval"
        );
        assert_eq!(complaint(&["--zzz"], &[]), "--zzz: there is no such flag; --help lists them");
        assert_eq!(
            complaint(&[], &[("HAWSER_TEST_PING", "1s")]),
            "HAWSER_TEST_PING: the environment sets a knob that does not exist; --help lists those that do"
        );
        for key in ["pings", "help", "version", "config"] {
            let file = File::with(&format!("{key} = true"));
            assert_eq!(
                complaint(&[&file.flag()], &[]),
                format!("{key} in {}: there is no such knob; --help lists them", file.path())
            );
        }
        let file = File::with("ping-interval = \"1s\"");
        assert!(
            complaint(&[&file.flag()], &[]).ends_with("no such knob, but there is ping_interval")
        );
    }

    #[test]
    fn variables_of_others_are_let_through() {
        let env = [
            ("PATH", "/bin"),
            ("HAWSER_TESTING", "1"),
            ("HAWSER_TEST_SERVICE_HOST", "10.0.0.1"),
            ("HAWSER_TEST_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ];
        assert_eq!(knobs(&[], &env), knobs(&[], &[]));
    }

    #[test]
    fn a_file_that_is_missing_or_broken_is_told_with_its_name() {
        let missing = complaint(&["--config", "/nowhere/edge.toml"], &[]);
        assert!(missing.starts_with("--config: /nowhere/edge.toml cannot be read: "), "{missing}");
        let file = File::with("listen = \"127.0.0.1:1\"\nping_interval = = 3\n");
        let broken = complaint(&[&file.flag()], &[]);
        let start = format!("--config: {} is not TOML at line 2: ", file.path());
        assert!(broken.starts_with(&start), "{broken}");
        for (text, told) in [
            ("listen = [\"127.0.0.1:1\"]", "is a list, allowed is one value"),
            ("[listen]\nport = 1", "is a table, allowed is a text, a number or true and false"),
        ] {
            let file = File::with(text);
            let complaint = complaint(&[&file.flag()], &[]);
            assert_eq!(complaint, format!("listen in {}: {told}", file.path()));
        }
    }

    #[test]
    fn every_complaint_is_one_line() {
        let file = File::with("a = \n\n\"\"\"");
        for flags in [vec![file.flag()], vec!["stray".to_owned()], vec!["-x".to_owned()]] {
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let told = complaint(&flags, &[]);
            assert_eq!(told.lines().count(), 1, "{told}");
        }
    }

    #[test]
    fn help_is_given_even_when_something_else_is_wrong() {
        for flag in ["--help", "--version"] {
            let env = [("HAWSER_TEST_PING_INTERVAL", "30x")];
            let Err(Unread::Asked(text)) = read_with(&[flag], &env) else { panic!("{flag}") };
            assert_eq!(text.exit_code(), 0);
            let text = text.to_string();
            match flag {
                "--help" => assert!(text.contains("HAWSER_TEST_SOME_KNOB"), "{text}"),
                _ => assert_eq!(text, "hawser-test 1.2.3\n"),
            }
        }
    }
}
