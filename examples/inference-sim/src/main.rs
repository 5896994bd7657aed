//! `inference-sim`: see `--help`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::serve::ListenerExt;
use clap::Parser;
use inference_sim::cli::Args;
use inference_sim::gpu;
use inference_sim::http::{App, router};
use inference_sim::serving::Serving;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let device = args.device()?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let serving = Serving::new(args.engine());
    tokio::spawn(Arc::clone(&serving).run());
    let state_file = args.nvml_state.clone();
    let load = serving.load();
    let publishing = async move {
        match state_file {
            Some(path) => {
                gpu::publish(device, load, path.clone()).await.with_context(|| format!("writing --nvml-state {}", path.display()))
            }
            None => std::future::pending().await,
        }
    };
    let app = App::new(serving, args.defaults(), args.stream_interval.get(), args.metrics);
    tokio::select! {
        result = publishing => result,
        result = serve(&args, app, &mut terminate, &mut interrupt) => result,
    }
}

/// Serves until a signal, then until running requests have ended or the drain time is over.
async fn serve(args: &Args, app: Arc<App>, terminate: &mut Signal, interrupt: &mut Signal) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("listening on {}", args.listen))?;
    let address = listener.local_addr().context("reading the bound address")?;
    // A token is a small write; Nagle's algorithm would hold it back.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, router(Arc::clone(&app))).with_graceful_shutdown(async { drop(stopped.await) });
    let server = tokio::spawn(server.into_future());
    announce(args, address.port())?;
    println!("inference-sim: serving {} on http://{address}", args.model);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    app.drain();
    drop(stop);
    finish(server, args.drain_ms).await
}

fn announce(args: &Args, port: u16) -> anyhow::Result<()> {
    let Some(path) = &args.port_file else { return Ok(()) };
    gpu::write_atomically(path, format!("{port}\n").as_bytes()).with_context(|| format!("writing --port-file {}", path.display()))
}

async fn finish(server: tokio::task::JoinHandle<io::Result<()>>, drain: Duration) -> anyhow::Result<()> {
    match tokio::time::timeout(drain, server).await {
        Ok(result) => result.context("the server task")?.context("serving"),
        Err(_) => {
            eprintln!("inference-sim: requests still ran after {} ms; they were cut off", drain.as_millis());
            Ok(())
        }
    }
}
