//! Load at connection scale, and two commands for hands.
//!
//! A subcommand per question: `echo` (what does a message cost a server), `chat` (how fast, is anything lost),
//! `crash` (is anything lost when processes die), `idle` (what does a silent connection cost), `storm` (how soon are all
//! back), `drain` (how evenly does an edge let its clients go), `takeover` (how soon do
//! others serve a dead router's users), `slow` (what do clients cost that stop reading), `flood`
//! (whom do bad handshakes hurt), `soak` (does coming and going leave anything behind), `plot` (draw what others have
//! reported), `send` and `listen` (does it work at all). Exit status: 0 good, 1 a fault was found, 2 the target is out of
//! reach, 64 wrong usage.
#![forbid(unsafe_code)]

mod checker;
mod client;
mod clock;
mod crowd;
mod disk;
mod failure;
mod front;
mod host;
mod plot;
mod processes;
mod report;
mod scenario;
mod services;
mod stepped;
mod target;
mod tls;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::scenario::{
    Outcome, Stop, chat, crash, drain, echo, flood, idle, listen, send, slow, soak, storm, takeover,
};

#[derive(Debug, Parser)]
#[command(name = "hawser-bench", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send one message and wait until it is durable
    Send(send::SendArgs),
    /// Print a user's messages, one a line
    Listen(listen::ListenArgs),
    /// What does one message cost a WebSocket server?
    Echo(echo::EchoArgs),
    /// How fast is chat from end to end, and is anything lost?
    Chat(chat::ChatArgs),
    /// Is anything lost when edge and router are killed at random instants?
    Crash(crash::CrashArgs),
    /// What does a silent connection cost the edge?
    Idle(idle::IdleArgs),
    /// How soon are all back after the edge died, or after all were cut off?
    Storm(storm::StormArgs),
    /// How evenly does an edge let its clients go when it is told to leave?
    Drain(drain::DrainArgs),
    /// How soon are a router's users served by others when it is killed?
    Takeover(takeover::TakeoverArgs),
    /// What do clients cost that stop reading, and whom do they hurt?
    Slow(slow::SlowArgs),
    /// What does a flood of bad handshakes do to those who talk?
    Flood(flood::FloodArgs),
    /// Does memory grow when clients come and go?
    Soak(soak::SoakArgs),
    /// Draw the reports of earlier runs
    Plot(plot::PlotArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            eprintln!("{}", usage_sentence(&error.to_string()));
            return ExitCode::from(Failure::Usage(String::new()).exit_status());
        }
        // --help and --version.
        Err(asked) => asked.exit(),
    };
    match run(&cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("hawser-bench: {failure}");
            ExitCode::from(failure.exit_status())
        }
    }
}

/// Runs one command; false when it found a fault.
fn run(command: &Command) -> Result<bool, Failure> {
    let stop = Stop::on_signals()?;
    let (outcome, output) = match command {
        Command::Plot(args) => return plot::run(args).map(|()| true),
        Command::Send(args) => return send::run(args, &stop).map(|()| true),
        Command::Listen(args) => return listen::run(args, &stop).map(|()| true),
        Command::Echo(args) => (echo::run(args, &stop)?, args.output),
        Command::Chat(args) => (chat::run(args, &stop)?, args.output),
        Command::Crash(args) => (crash::run(args, &stop)?, args.output),
        Command::Idle(args) => (idle::run(args, &stop)?, args.output),
        Command::Storm(args) => (storm::run(args, &stop)?, args.output),
        Command::Drain(args) => (drain::run(args, &stop)?, args.output),
        Command::Takeover(args) => (takeover::run(args, &stop)?, args.output),
        Command::Slow(args) => (slow::run(args, &stop)?, args.output),
        Command::Flood(args) => (flood::run(args, &stop)?, args.output),
        Command::Soak(args) => (soak::run(args, &stop)?, args.output),
    };
    let Outcome { report, is_good } = outcome;
    report.print(output.json)?;
    Ok(is_good)
}

/// The sentence of a clap error, which names the flag, without its hints.
fn usage_sentence(error: &str) -> String {
    let is_hint =
        |line: &str| ["Usage:", "tip:", "For more"].iter().any(|hint| line.starts_with(hint));
    let lines = error.lines().map(str::trim).take_while(|line| !is_hint(line));
    let said = lines.filter(|line| !line.is_empty());
    let sentence = said.collect::<Vec<_>>().join(" ");
    format!("hawser-bench: {}", sentence.strip_prefix("error: ").unwrap_or(&sentence))
}
