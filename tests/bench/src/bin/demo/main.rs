//! `cargo xtask demo`: a real Envoy, the control plane and an inference server under three times the load that they can bear.
//!
//! Three phases of one third each: base load, overload, base load again. Exit status 0 only if what the product promises was seen.

use std::fs;
use std::io::{IsTerminal as _, Write as _, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use headgate_test_support::load::Load;

mod frame;
mod observe;
mod scene;
mod summary;

use frame::Colour;
use observe::Observer;
use scene::Scene;

/// Time between two frames.
const FRAME: Duration = Duration::from_millis(250);
/// Time between two frames where nobody looks: a log.
const FRAME_IN_LOG: Duration = Duration::from_secs(2);

/// Shows Headgate at work.
#[derive(Parser)]
#[command(after_help = "Examples:\n  cargo xtask demo\n  cargo xtask demo --seconds 60 --json demo.json")]
struct Args {
    /// Length of the load, in seconds: a third each of base load, overload, base load.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(15..=3600))]
    seconds: u64,
    /// Writes the result to this file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Load during the overload, in multiples of what the pool can do.
    #[arg(long, default_value_t = 3.0)]
    overload: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&args))
}

async fn run(args: &Args) -> Result<()> {
    eprintln!("starting inference-sim, headgate serve and Envoy with 2 workers …");
    let mut scene = Scene::start().await?;
    let total = Duration::from_secs(args.seconds);
    let phases = scene::Phases::of(total);
    let load = Load::start(scene.plan(&phases, args.overload))?;
    let mut observer = Observer::new(load.started());
    let mut screen = Screen::new();
    let mut drawn_at: Option<Instant> = None;
    while !load.is_over() {
        observer.look(&scene, &load).await?;
        if drawn_at.is_none_or(|at| at.elapsed() >= screen.interval()) {
            drawn_at = Some(Instant::now());
            screen.draw(&observer.frame(&load, &phases, total).render(screen.colour))?;
        }
        tokio::time::sleep(FRAME / 2).await;
    }
    observer.look(&scene, &load).await?;
    screen.draw(&observer.frame(&load, &phases, total).render(screen.colour))?;
    let outcomes = load.outcomes(0);
    let report = load.finish().await?;
    let summary = summary::Summary::of(&scene, &observer, &phases, &report, &outcomes);
    scene.stop().await?;
    println!("{}", summary.text());
    if let Some(path) = &args.json {
        fs::write(path, summary.json()?).with_context(|| format!("cannot write {}", path.display()))?;
        println!("written to {}", path.display());
    }
    summary.verdict()
}

/// Where frames go: redrawn in place on a terminal, one after the other in a log.
struct Screen {
    colour: Colour,
    lines: u16,
}

impl Screen {
    fn new() -> Self {
        let colour = if stdout().is_terminal() { Colour::On } else { Colour::Off };
        Self { colour, lines: 0 }
    }

    fn interval(&self) -> Duration {
        if self.colour == Colour::On { FRAME } else { FRAME_IN_LOG }
    }

    fn draw(&mut self, text: &str) -> Result<()> {
        use crossterm::cursor::MoveToPreviousLine;
        use crossterm::terminal::{Clear, ClearType};
        let mut out = stdout().lock();
        if self.colour == Colour::On {
            if self.lines > 0 {
                crossterm::queue!(out, MoveToPreviousLine(self.lines))?;
            }
            crossterm::queue!(out, Clear(ClearType::FromCursorDown))?;
        }
        writeln!(out, "{text}")?;
        out.flush()?;
        self.lines = u16::try_from(text.lines().count() + 1).unwrap_or(u16::MAX);
        Ok(())
    }
}
