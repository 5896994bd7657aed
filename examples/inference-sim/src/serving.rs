//! The engine in real time: who submits, who is told, and the task that lets time pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::engine::{Engine, EngineConfig, FinishReason, Output, Rejected, SequenceId, Submission};
use crate::gpu::Load;

/// A running engine that any number of handlers share.
#[derive(Debug)]
pub struct Serving {
    core: Mutex<Core>,
    origin: Instant,
    /// Told when an idle engine got work.
    work: Notify,
    load: watch::Sender<Load>,
}

#[derive(Debug)]
struct Core {
    engine: Engine,
    listeners: HashMap<SequenceId, mpsc::UnboundedSender<Output>>,
}

/// One request in the engine. Dropping it aborts the request and frees its blocks, unless it has finished.
#[derive(Debug)]
pub struct Generation {
    serving: Arc<Serving>,
    id: SequenceId,
    outputs: mpsc::UnboundedReceiver<Output>,
}

/// What came out since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens produced.
    pub tokens: u32,
    /// Set when nothing will follow.
    pub finish: Option<FinishReason>,
}

// === impl Serving ===

impl Serving {
    /// An engine whose time starts now. Nothing happens until [`Serving::run`] is polled.
    pub fn new(config: EngineConfig) -> Arc<Serving> {
        let engine = Engine::new(config);
        let load = watch::Sender::new(load_of(&engine));
        let core = Mutex::new(Core { engine, listeners: HashMap::new() });
        Arc::new(Serving { core, origin: Instant::now(), work: Notify::new(), load })
    }

    /// Submits one request.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit(self: &Arc<Self>, submission: Submission) -> Result<Generation, Rejected> {
        let mut core = self.advance();
        let was_idle = core.engine.next_step_at().is_none();
        let id = core.engine.submit(self.now(), submission)?;
        let (sender, outputs) = mpsc::unbounded_channel();
        core.listeners.insert(id, sender);
        drop(core);
        if was_idle {
            self.work.notify_one();
        }
        Ok(Generation { serving: Arc::clone(self), id, outputs })
    }

    /// Reads the engine as it is now.
    pub fn read<T>(&self, read: impl FnOnce(&Engine) -> T) -> T {
        read(&self.advance().engine)
    }

    /// The load, with every change of it.
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.subscribe()
    }

    /// Steps the engine whenever a step ends. Never returns.
    pub async fn run(self: Arc<Self>) {
        loop {
            let next = self.advance().engine.next_step_at();
            match next {
                Some(at) => tokio::time::sleep_until(self.origin + at).await,
                None => self.work.notified().await,
            }
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the engine to the present and tells listeners what it produced.
    fn advance(&self) -> MutexGuard<'_, Core> {
        let mut core = self.lock();
        for output in core.engine.step(self.now()) {
            core.deliver(output);
        }
        self.publish_load(&core.engine);
        core
    }

    fn publish_load(&self, engine: &Engine) {
        let load = load_of(engine);
        self.load.send_if_modified(|current| std::mem::replace(current, load) != load);
    }

    fn abort(&self, id: SequenceId) {
        let mut core = self.advance();
        if core.listeners.remove(&id).is_some() {
            core.engine.abort(id);
            self.publish_load(&core.engine);
        }
    }
}

fn load_of(engine: &Engine) -> Load {
    Load {
        blocks_in_use: engine.pool().in_use(),
        blocks: engine.pool().capacity(),
        running: engine.running() as u32,
        max_batch: engine.config().max_batch.get() as u32,
    }
}

// === impl Core ===

impl Core {
    /// A listener that is gone is about to abort, so a failed send needs no answer.
    fn deliver(&mut self, output: Output) {
        if output.finish.is_some() {
            if let Some(listener) = self.listeners.remove(&output.id) {
                let _ = listener.send(output);
            }
        } else if let Some(listener) = self.listeners.get(&output.id) {
            let _ = listener.send(output);
        }
    }
}

// === impl Generation ===

impl Generation {
    /// Waits for at least `at_least` tokens or the end, and takes everything that is there by then.
    pub async fn next(&mut self, at_least: u32) -> Progress {
        let mut progress = Progress { tokens: 0, finish: None };
        while progress.finish.is_none() && progress.tokens < at_least.max(1) {
            // The engine drops the sender only after it sent the last output, so `None` is that end seen once more.
            let Some(output) = self.outputs.recv().await else {
                return Progress { finish: progress.finish.or(Some(FinishReason::Stop)), ..progress };
            };
            progress.add(output);
            while let Ok(output) = self.outputs.try_recv() {
                progress.add(output);
            }
        }
        progress
    }

    /// Waits for the end; the tokens produced until then.
    pub async fn finish(mut self) -> (u32, FinishReason) {
        let mut tokens = 0;
        loop {
            let progress = self.next(u32::MAX).await;
            tokens += progress.tokens;
            if let Some(reason) = progress.finish {
                return (tokens, reason);
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.serving.abort(self.id);
    }
}

impl Progress {
    fn add(&mut self, output: Output) {
        self.tokens += output.tokens;
        self.finish = output.finish;
    }
}
