//! The nodes: an agent process each, playing a recording that is its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use headgate_test_support::Process;
use headgate_test_support::artefact::{program, workspace_root};
use serde_json::Value;
use tempfile::TempDir;

/// Length of a node's tape, in samples.
const SAMPLES: usize = 200;

/// The agents; they end with it.
pub(super) struct Nodes {
    agents: Vec<Process>,
    _folder: TempDir,
}

// === impl Nodes ===

impl Nodes {
    /// Starts `nodes` agents with `gpus` devices each.
    pub(super) fn start(nodes: u32, gpus: u32, hz: u32, server: SocketAddr) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let recorded = Recorded::read()?;
        let headgate = program("headgate")?;
        let agent = |node: u32| {
            let tape = recorded.write(folder.path(), node, gpus, hz)?;
            let mut command = Command::new(&headgate);
            command.args(["agent", "--server", &format!("http://{server}"), "--node", &format!("gpu-{node:03}"), "--device-tape"]);
            Process::spawn("agent", command.arg(tape), &folder.path().join(format!("{node}.log")))
        };
        let agents = (0..nodes).map(agent).collect::<Result<_>>()?;
        Ok(Self { agents, _folder: folder })
    }

    /// CPU time of each agent so far.
    pub(super) fn cpu_time(&self) -> Result<Vec<Duration>> {
        self.agents.iter().map(|agent| Ok(agent.cpu_time()?.ran)).collect()
    }
}

/// The recording of a real H200.
struct Recorded {
    header: Value,
    samples: Vec<Value>,
    detail: Value,
}

// === impl Recorded ===

impl Recorded {
    fn read() -> Result<Self> {
        let path = workspace_root().join("tests/tapes/h200.jsonl");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = text.lines().map(serde_json::from_str::<Value>);
        let header = lines.next().context("the tape is empty")??;
        let calls = lines.collect::<Result<Vec<Value>, _>>()?;
        let first = |key: &str| calls.iter().filter_map(|call| call[key].get(0).cloned()).collect::<Vec<_>>();
        let detail = first("details").into_iter().next().context("the tape has no details")?;
        Ok(Self { header, samples: first("samples"), detail })
    }

    /// A tape of `gpus` devices, each at another place of the recording.
    fn write(&self, folder: &Path, node: u32, gpus: u32, hz: u32) -> Result<PathBuf> {
        let uuid = |gpu: u32| format!("GPU-{node:08x}-0000-4000-8000-{gpu:012x}");
        let with = |value: &Value, gpu: u32| {
            let mut value = value.clone();
            value["uuid"] = uuid(gpu).into();
            if value.get("index").is_some() {
                value["index"] = gpu.into();
            }
            value
        };
        let mut header = self.header.clone();
        header["devices"] =
            (0..gpus).map(|gpu| serde_json::json!({"index": gpu, "uuid": uuid(gpu), "name": "NVIDIA H200"})).collect::<Vec<_>>().into();
        let details: Vec<Value> = (0..gpus).map(|gpu| with(&self.detail, gpu)).collect();
        let mut text = format!("{header}\n{}\n", serde_json::json!({"at_us": 0, "took_us": 0, "details": details}));
        for n in 0..SAMPLES {
            let place = |gpu: u32| (n + (node * gpus + gpu) as usize * 37) % self.samples.len();
            let samples: Vec<Value> = (0..gpus).map(|gpu| with(&self.samples[place(gpu)], gpu)).collect();
            let at_us = n as u64 * 1_000_000 / u64::from(hz);
            text.push_str(&format!("{}\n", serde_json::json!({"at_us": at_us, "took_us": 0, "samples": samples})));
        }
        let path = folder.join(format!("{node}.jsonl"));
        fs::write(&path, text)?;
        Ok(path)
    }
}
