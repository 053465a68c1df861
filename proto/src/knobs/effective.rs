//! What the knobs of a process come to, in the words in which they were written: for people, and to be told apart from
//! what they were before.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write as _;

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use super::{Place, Setting, find_knob, is_flag_of, is_list};

/// The knobs of a process.
#[derive(Debug, Clone)]
pub struct Knobs<T> {
    /// Parsed.
    pub values: T,
    /// As they were written, in the order in which they are declared.
    pub effective: Vec<Effective>,
    /// What the file says, for [`super::Source::read_again`].
    pub(super) file: Vec<Setting>,
}

impl<T> Knobs<T> {
    /// Notes what a knob comes to, or is to be shown as: one that nobody set, where the process works it out, or one with a
    /// password in it.
    ///
    /// # Panics
    /// When there is no such knob.
    pub fn derive(&mut self, knob: &str, value: String) {
        let found = self.effective.iter_mut().find(|effective| effective.knob == knob);
        found.expect("a derived knob is declared").values = vec![value];
    }
}

/// One knob as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Its key in the file: `ping_interval`.
    pub knob: String,
    /// As written, secrets included; none when it has no default and nobody set it, several only for a list.
    values: Vec<String>,
    /// Whether it is a list.
    pub is_list: bool,
    /// Where it was written.
    pub origin: Origin,
}

impl Effective {
    /// As written, for people to see: URLs without user, password and query, which may be secret.
    pub fn shown(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.values.iter().map(|value| public_part(value))
    }

    fn hides_something(&self) -> bool {
        self.shown().zip(&self.values).any(|(shown, value)| shown != *value)
    }
}

/// The text, or of a URL scheme, host, port and path.
fn public_part(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{host}{path}").into(),
        None => text[..scheme.len() + "://".len() + rest.len()].into(),
    }
}

/// Where a knob's value was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In the file that `--config` names.
    File,
    /// In the environment.
    Environment,
    /// On the command line.
    Flag,
}

impl Origin {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Origin::Default => "default",
            Origin::File => "file",
            Origin::Environment => "environment",
            Origin::Flag => "flag",
        }
    }
}

/// The knobs that were given another value; both have to come from one process.
pub fn differences<'a>(
    before: &'a [Effective],
    after: &'a [Effective],
) -> impl Iterator<Item = &'a str> {
    before.iter().zip(after).filter(|(b, a)| b.values != a.values).map(|(b, _)| b.knob.as_str())
}

/// A file that says the same, each knob with the place where it is written now. A value that hides something is given as a
/// comment.
#[must_use]
pub fn to_toml(knobs: &[Effective]) -> String {
    let mut out = String::new();
    for effective in knobs {
        let Effective { knob, is_list, origin, .. } = effective;
        let mut shown = effective.shown().map(|value| to_value(&value));
        let value = if *is_list {
            format!("[{}]", shown.collect::<Vec<_>>().join(", "))
        } else if let Some(value) = shown.next() {
            value
        } else {
            // What has no value cannot be written; the line shows that there is such a knob.
            let _ = writeln!(out, "# {knob} is not set");
            continue;
        };
        let hides = effective.hides_something();
        let (before, behind) =
            if hides { ("# ", ", without what may be secret") } else { ("", "") };
        let _ = writeln!(out, "{before}{knob} = {value}  # {}{behind}", origin.word());
    }
    out
}

/// As TOML has it. Knobs take numbers and truth as text, too, but nobody writes them so.
fn to_value(text: &str) -> String {
    let is_plain = matches!(text, "true" | "false")
        || text.parse::<i64>().is_ok_and(|number| number.to_string() == text);
    if is_plain { text.to_owned() } else { toml::Value::from(text).to_string() }
}

pub(super) fn all(
    command: &Command,
    matches: &ArgMatches,
    below: &[Setting],
    flags: &[OsString],
) -> Vec<Effective> {
    let knobs = command.get_arguments().filter_map(|arg| {
        let knob = arg.get_long()?.replace('-', "_");
        let declared = find_knob(command, &knob).is_some() && arg.get_id() != "config";
        declared.then_some((knob, arg))
    });
    knobs
        .map(|(knob, arg)| {
            let id = arg.get_id().as_str();
            let raw = matches.get_raw(id).into_iter().flatten();
            let values = raw.map(|value| value.to_string_lossy().into_owned()).collect();
            let is_set = matches.value_source(id).is_some_and(|s| s != ValueSource::DefaultValue);
            let is_in = |place| below.iter().any(|s| s.knob == knob && s.place == place);
            let origin = if !is_set {
                Origin::Default
            } else if flags.iter().any(|flag| is_flag_of(flag, &knob)) {
                Origin::Flag
            } else if is_in(Place::Environment) {
                Origin::Environment
            } else {
                Origin::File
            };
            Effective { knob, values, is_list: is_list(arg), origin }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use clap::Parser;

    use super::super::{Source, Unread};
    use super::*;

    #[derive(Parser, Debug, PartialEq)]
    #[command(name = "hawser-test")]
    struct Test {
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: String,
        #[arg(long, default_value = "15s")]
        interval: String,
        #[arg(long, default_value = "10")]
        number: u32,
        #[arg(long)]
        dev_auth: bool,
        #[arg(long)]
        origins: Vec<String>,
        #[arg(long)]
        echo_path: Option<String>,
    }

    fn source(file: &Path, flags: &[&str], env: &[(&str, &str)]) -> Source {
        let config = format!("--config={}", file.display());
        let args = ["hawser-test", &config].into_iter().chain(flags.iter().copied());
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        Source::new("HAWSER_TEST", args.map(OsString::from), env)
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn what_is_in_force_is_written_as_a_file_that_says_the_same() {
        let given = file("interval = \"30s\"\norigins = [\"a\", \"b \\\"c\\\"\"]\n");
        let knobs = source(given.path(), &["--dev-auth"], &[("HAWSER_TEST_NUMBER", "7")])
            .read::<Test>()
            .unwrap();
        let toml = to_toml(&knobs.effective);
        assert_eq!(
            toml,
            "listen = \"127.0.0.1:8080\"  # default\ninterval = \"30s\"  # file\nnumber = 7  # environment\n\
             dev_auth = true  # flag\norigins = [\"a\", 'b \"c\"']  # file\n# echo_path is not set\n"
        );
        let again = source(file(&toml).path(), &[], &[]).read::<Test>().unwrap();
        assert_eq!(again.values, knobs.values);
    }

    #[test]
    fn what_may_be_secret_in_a_url_is_not_shown_and_its_change_is_noticed() {
        for (text, public) in [
            (
                "https://user:word@keys.example:8443/jwks?secret=1#x",
                "https://keys.example:8443/jwks",
            ),
            ("http://a@b@c", "http://c"),
            ("https://keys.example?secret", "https://keys.example"),
            ("https://keys.example/a@b", "https://keys.example/a@b"),
            ("unix:/run/a?b", "unix:/run/a?b"),
            ("127.0.0.1:1", "127.0.0.1:1"),
        ] {
            assert_eq!(public_part(text), public);
        }
        let read = |word: &str| {
            let given = file(&format!("echo_path = \"https://user:{word}@keys.example/\""));
            source(given.path(), &[], &[]).read::<Test>().unwrap().effective
        };
        let (one, other) = (read("one"), read("other"));
        assert_eq!(differences(&one, &other).collect::<Vec<_>>(), ["echo_path"]);
        let line = "# echo_path = \"https://keys.example/\"  # file, without what may be secret";
        assert_eq!(to_toml(&one).lines().last(), Some(line));
    }

    #[test]
    fn a_file_read_again_changes_what_may_change_and_nothing_else() {
        let before = file("listen = \"1.1.1.1:1\"\ninterval = \"30s\"\nnumber = 3\n");
        let flags = &["--number=5"][..];
        let source = source(before.path(), flags, &[]);
        let running = source.read::<Test>().unwrap();
        std::fs::write(before.path(), "listen = \"2.2.2.2:2\"\nnumber = 4\necho_path = \"/x\"")
            .unwrap();

        let may_change = |knob: &str| knob != "listen" && knob != "echo_path";
        let fresh = source.read::<Test>().unwrap();
        let again = source.read_again(&running, may_change).unwrap();
        let changed: Vec<_> = differences(&running.effective, &again.effective).collect();
        let kept: Vec<_> = differences(&again.effective, &fresh.effective).collect();
        assert_eq!((changed, kept), (vec!["interval"], vec!["listen", "echo_path"]));
        assert_eq!(again.values.listen, "1.1.1.1:1");
        assert_eq!((again.values.interval.as_str(), again.values.number), ("15s", 5));
        assert_eq!(again.values.echo_path, None);

        std::fs::write(before.path(), "interva = 1").unwrap();
        assert!(matches!(source.read_again(&running, may_change), Err(Unread::Usage(_))));
    }
}
