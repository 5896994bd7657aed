//! `headgate top`: pools, classes, levels, GPUs, engines and proxies of a running control plane, live in a terminal.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use crossterm::event::{Event, EventStream};
use futures::StreamExt;
use ratatui::DefaultTerminal;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use self::app::{App, Request};
use self::feed::News;
use self::paint::Theme;
use self::trend::Trends;
use super::connect::HttpArgs;
use super::{CliError, Format, print};
use crate::status::StatusDocument;

mod app;
mod feed;
mod latencies;
mod paint;
mod screen;
mod sheet;
mod sheets;
#[cfg(test)]
mod tests;
mod trend;

pub(super) const EXAMPLES: &str = "Examples:\n  headgate top\n  headgate top --url http://headgate.example:18080 --interval-ms 500\n  \
                                   headgate top --once                       # the overview as text\n  \
                                   headgate top --once --json | jq .rates    # for scripts\n\n\
                                   Keys: 1 to 8 change the view, s sorts, r reverses, p pauses, ? explains, q quits.\n\
                                   NO_COLOR ends colours; a locale that is not UTF-8, or --ascii, ends line drawing.";

/// Time between two frames: countdowns move smoothly, and a terminal over a slow line is not flooded (only what changed is sent).
const FRAME: Duration = Duration::from_millis(250);
/// Width of the text without a terminal to ask.
const TEXT_WIDTH: u16 = 160;

/// Arguments of `headgate top`.
#[derive(Args, Debug)]
pub(super) struct TopArgs {
    #[command(flatten)]
    http: HttpArgs,
    /// Time between two looks, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
    /// Print the overview once and end: after two looks, because rates need two
    #[arg(long)]
    once: bool,
    /// Draw with ASCII characters only
    #[arg(long)]
    ascii: bool,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Record<'a> {
    /// Rates of every class since the look before.
    rates: Vec<ClassRates<'a>>,
    status: &'a StatusDocument,
}

#[derive(Serialize)]
struct ClassRates<'a> {
    pool: &'a str,
    class: &'a str,
    #[serde(flatten)]
    rates: trend::Rates,
}

/// Shows the screen until a key or a signal ends it; with `--json` or `--once` prints instead.
pub(super) async fn run(args: TopArgs, format: Format) -> Result<(), CliError> {
    let interval = Duration::from_millis(args.interval_ms);
    let app = App::new(args.http.address().to_owned(), interval, Theme::of_environment(args.ascii));
    match (format, args.once) {
        (Format::Json, once) => print_records(&args.http, interval, once).await,
        (Format::Text, true) => print_overview(&args.http, app).await,
        (Format::Text, false) if io::stdout().is_terminal() && io::stdin().is_terminal() => show(args.http, app).await,
        (Format::Text, false) => {
            Err(CliError::Usage("headgate top needs a terminal; for a file or a script use `--once`, `--json` or both".to_owned()))
        }
    }
}

async fn print_records(http: &HttpArgs, interval: Duration, once: bool) -> Result<(), CliError> {
    let mut trends = Trends::default();
    for number in 1_u64.. {
        let status = feed::look(http).await?;
        trends.take(Instant::now(), &status);
        let is_last = once && number == 2;
        if !once || is_last {
            print(&record(&status, &trends)?)?;
        }
        if is_last {
            break;
        }
        tokio::time::sleep(interval).await;
    }
    Ok(())
}

fn record(status: &StatusDocument, trends: &Trends) -> Result<String, CliError> {
    let rates = trends.all().map(|((pool, class), rates)| ClassRates { pool, class, rates: *rates }).collect();
    serde_json::to_string(&Record { rates, status })
        .map_err(|error| CliError::Io { what: "cannot write JSON".to_owned(), source: io::Error::other(error) })
}

async fn print_overview(http: &HttpArgs, mut app: App) -> Result<(), CliError> {
    app.take(Instant::now(), News::Seen(Box::new(feed::look(http).await?)));
    tokio::time::sleep(app.interval).await;
    app.take(Instant::now(), News::Seen(Box::new(feed::look(http).await?)));
    let width = crossterm::terminal::size().map_or(TEXT_WIDTH, |(width, _)| width).max(40);
    print(&screen::text(&app, Instant::now(), width))
}

async fn show(http: HttpArgs, app: App) -> Result<(), CliError> {
    let (interval, intervals) = watch::channel(app.interval);
    let news = feed::start(http, intervals);
    // Puts the terminal back when a panic unwinds, too.
    let mut terminal = ratatui::try_init().map_err(|source| broken("set the terminal up", source))?;
    let shown = follow(&mut terminal, app, news, &interval).await;
    ratatui::restore();
    shown
}

/// Draws, listens to keys, signals and news, until the end.
async fn follow(
    terminal: &mut DefaultTerminal,
    mut app: App,
    mut news: mpsc::Receiver<News>,
    interval: &watch::Sender<Duration>,
) -> Result<(), CliError> {
    let listen = |kind| signal(kind).map_err(|source| broken("listen for signals", source));
    let (mut terminate, mut hang_up) = (listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    let mut events = EventStream::new();
    let mut frames = tokio::time::interval(FRAME);
    loop {
        terminal.draw(|frame| screen::draw(frame, &app, Instant::now())).map_err(|source| broken("draw", source))?;
        tokio::select! {
            _ = frames.tick() => {}
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            Some(news) = news.recv() => app.take(Instant::now(), news),
            event = events.next() => match event {
                // A terminal that has gone, as when a connection breaks.
                None => return Ok(()),
                Some(Err(source)) => return Err(broken("read the keyboard", source)),
                Some(Ok(Event::Key(key))) => match app.press(key) {
                    Request::Nothing => {}
                    Request::Quit => return Ok(()),
                    // The feed ends with this screen.
                    Request::SetInterval(every) => drop(interval.send(every)),
                },
                // The next frame is drawn as large as the terminal is then.
                Some(Ok(_)) => {}
            },
        }
    }
}

fn broken(what: &str, source: io::Error) -> CliError {
    CliError::Io { what: format!("cannot {what}"), source }
}
