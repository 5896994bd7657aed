//! `headgate top` in a real pseudo-terminal, against a status that goes away and comes back; and without a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use headgate::status::{ClassStatus, LatencyStatus, LatencyStream, PoolStatus, StatusDocument};
use nix::pty::{Winsize, openpty};

const PATIENCE: Duration = Duration::from_secs(20);

/// The program in a terminal of its own.
struct Screen {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<String>>,
}

impl Screen {
    fn start(url: &str) -> Self {
        let size = Winsize { ws_row: 40, ws_col: 150, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let end = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
        command.args(["top", "--interval-ms", "100", "--url", url]).env("TERM", "xterm").env("LC_ALL", "C.UTF-8").env_remove("NO_COLOR");
        command.stdin(end(&pty.slave)).stdout(end(&pty.slave)).stderr(end(&pty.slave));
        let own_terminal = || {
            nix::unistd::setsid()?;
            // SAFETY: TIOCSCTTY takes no pointer; descriptor 0 is the slave end of the pseudo-terminal.
            nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
            Ok(())
        };
        // SAFETY: setsid and ioctl are async-signal-safe, and nothing is allocated between fork and exec.
        unsafe { command.pre_exec(own_terminal) };
        let child = command.spawn().unwrap();
        drop(command);
        drop(pty.slave);
        // SAFETY: the descriptor is open and has no other owner.
        let keyboard = unsafe { File::from_raw_fd(pty.master.into_raw_fd()) };
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut output, sink) = (keyboard.try_clone().unwrap(), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // The read fails when the last one who holds the other end has gone.
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { child, keyboard, shown }
    }

    /// Waits until `text` is drawn; takes and returns what was drawn up to then.
    fn wait_for(&self, text: &str) -> String {
        let began = Instant::now();
        loop {
            let mut shown = self.shown.lock().unwrap();
            if let Some(at) = shown.find(text) {
                return shown.drain(..at + text.len()).collect();
            }
            assert!(began.elapsed() < PATIENCE, "no {text:?} in {shown:?}");
            drop(shown);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until `text` is drawn, and has everything drawn anew meanwhile: of what changes only the cells that differ are.
    fn redraw_until(&self, text: &str, widths: [u16; 2]) {
        let began = Instant::now();
        for width in widths.into_iter().cycle() {
            let next = Instant::now() + Duration::from_millis(200);
            while Instant::now() < next {
                if self.shown.lock().unwrap().contains(text) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(began.elapsed() < PATIENCE, "no {text:?}");
            self.resize(width);
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn resize(&self, width: u16) {
        let size = Winsize { ws_row: 20, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads a `winsize`, which lives until the call returns.
        nix::errno::Errno::result(unsafe { libc::ioctl(self.keyboard.as_raw_fd(), libc::TIOCSWINSZ, &size) }).unwrap();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It has ended, or the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves a status with one pool on `address`.
async fn serve(address: &str) -> (tokio::task::JoinHandle<()>, String) {
    let class = ClassStatus { class: "interactive".to_owned(), action: "admit".to_owned(), ..ClassStatus::default() };
    let stream = LatencyStream { class: "interactive".to_owned(), source: "filters".to_owned(), ..LatencyStream::default() };
    let latencies = LatencyStatus { streams: vec![stream], ..LatencyStatus::default() };
    let pool = PoolStatus { pool: "chat".to_owned(), classes: vec![class], latencies, ..PoolStatus::default() };
    let document = StatusDocument { pools: vec![pool], gpu_source: "no device: off".to_owned(), ..StatusDocument::default() };
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let route = axum::routing::get(move || async move { axum::Json(document) });
    let router = axum::Router::new().route("/throttle/status", route);
    (tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }), address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_draws_in_a_terminal_reconnects_and_leaves_the_terminal_as_it_was() {
    let (server, address) = serve("127.0.0.1:0").await;
    let mut screen = Screen::start(&address);
    screen.wait_for("\x1b[?1049h");
    screen.wait_for("live");
    screen.wait_for("interactive");

    server.abort();
    screen.wait_for("lost for");
    screen.wait_for("Connection refused");
    let (server, _) = serve(&address).await;
    screen.wait_for("live");

    // Only that view says so.
    screen.press("6");
    screen.resize(70);
    screen.redraw_until("no policy names an engine", [71, 70]);
    screen.press("q");
    screen.wait_for("\x1b[?1049l");
    assert_eq!(screen.child.wait().unwrap().code(), Some(0));
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_size_of_the_terminal_has_the_layout_of_that_size() {
    let (server, address) = serve("127.0.0.1:0").await;
    let mut screen = Screen::start(&address);
    screen.wait_for("live");
    screen.press("8");
    // The column that goes first when room is short.
    screen.wait_for("UPSTREAM P99");
    screen.resize(60);
    // A new size clears the screen, and the titles are drawn from the left to the right, above the rows.
    screen.wait_for("\x1b[2J");
    let titles = screen.wait_for("TTFT P99") + &screen.wait_for("interactive");
    assert!(!titles.contains("UPSTREAM"), "{titles:?}");
    screen.resize(170);
    screen.wait_for("UPSTREAM P99");
    screen.press("q");
    screen.wait_for("\x1b[?1049l");
    assert_eq!(screen.child.wait().unwrap().code(), Some(0));
    server.abort();
}

/// Where the terminal is watched by edges, a key that comes with the signal of a new size waits for the next key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_comes_with_a_new_size_is_taken_at_once() {
    let (server, address) = serve("127.0.0.1:0").await;
    let mut screen = Screen::start(&address);
    screen.wait_for("live");
    // One key doubles the time between two looks, the other halves it.
    for (trial, (key, interval)) in [("-", "0.2 s"), ("+", "0.1 s")].into_iter().cycle().take(30).enumerate() {
        screen.shown.lock().unwrap().clear();
        // Drawing for the first size takes milliseconds, in which nobody listens: the second size and the key are there together, the size
        // first. Each time at another moment of the drawing.
        screen.resize(100 + trial as u16);
        std::thread::sleep(Duration::from_millis(trial as u64 % 10));
        screen.resize(140 + trial as u16);
        screen.press(key);
        screen.redraw_until(&format!("every {interval}"), [120, 121]);
    }
    screen.resize(100);
    screen.press("q");
    screen.wait_for("\x1b[?1049l");
    assert_eq!(screen.child.wait().unwrap().code(), Some(0));
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_get_text_or_json_and_a_pipe_is_no_terminal() {
    let (server, address) = serve("127.0.0.1:0").await;
    let top = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headgate"));
        command.args(["top", "--interval-ms", "100", "--url", &address]).args(more).stdin(Stdio::null());
        command.output().unwrap()
    };
    let text = top(&["--once"]);
    assert_eq!(text.status.code(), Some(0));
    assert!(String::from_utf8(text.stdout).unwrap().contains("interactive"));
    let json: serde_json::Value = serde_json::from_slice(&top(&["--once", "--json"]).stdout).unwrap();
    assert_eq!(json["status"]["pools"][0]["pool"], "chat");
    assert_eq!(
        json["rates"][0],
        serde_json::json!({"pool": "chat", "class": "interactive", "offered_rps": 0.0, "admitted_rps": 0.0, "refused_rps": 0.0})
    );
    let piped = top(&[]);
    assert_eq!(piped.status.code(), Some(2));
    assert!(String::from_utf8(piped.stderr).unwrap().contains("use `--once`, `--json` or both"));
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    assert_eq!(top(&["--once"]).status.code(), Some(4));
}
