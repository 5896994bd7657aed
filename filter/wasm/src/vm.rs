//! The state of one VM, and the way from a callback's numbers to the instance and the stream that it is about.

use crate::config;
use crate::host::{self, Action, BufferKind, LogLevel};
use crate::http::Exchange;
use crate::root::Instance;
use headgate_core::contexts::Contexts;
use headgate_core::resume::{RESUMES_PER_CALLBACK, Resumed};
use std::cell::RefCell;

/// Most streams whose state is kept; one beyond is admitted, counted, and not looked at again.
const MAX_STREAMS: usize = 1 << 16;
/// Most instances in one VM; a configuration beyond is refused.
const MAX_INSTANCES: usize = 16;
/// Most root contexts that are remembered: an older one has no new requests.
const MAX_ROOTS: usize = 64;

/// Everything in the linear memory of one VM.
struct Vm {
    instances: Vec<Instance>,
    /// Root contexts, oldest first.
    roots: Vec<Root>,
    streams: Contexts<Exchange>,
    /// Reused for access log lines.
    line: String,
    /// Ticks so far, of any root.
    tick: u32,
}

/// A configuration's root context.
struct Root {
    id: u32,
    /// What its requests know of it: name of the plugin and its `root_id`. Of several instances with the same the newest governs.
    plugin: Vec<u8>,
    /// Index of the instance.
    instance: usize,
}

thread_local! {
    static VM: RefCell<Vm> = const {
        RefCell::new(Vm {
            instances: Vec::new(),
            roots: Vec::new(),
            streams: Contexts::new(),
            line: String::new(),
            tick: 0,
        })
    };
}

/// Runs `callback` on the VM's state. Envoy never calls back into a running callback but for memory; should it, nothing happens.
fn with<T>(callback: impl FnOnce(&mut Vm) -> T) -> Option<T> {
    VM.with(|vm| vm.try_borrow_mut().ok().map(|mut vm| callback(&mut vm)))
}

impl Vm {
    fn instance_of(&self, root: u32) -> Option<usize> {
        self.roots.iter().rev().find(|known| known.id == root).map(|known| known.instance)
    }

    /// The instance of the request whose headers are being read. Only where a VM has several does that take host calls.
    fn instance_of_request(&self) -> Option<usize> {
        if self.instances.len() == 1 {
            return Some(0);
        }
        self.instance_by_name()
    }

    #[inline(never)]
    fn instance_by_name(&self) -> Option<usize> {
        let plugin = plugin();
        self.roots.iter().rev().find(|known| known.plugin == plugin).map(|known| known.instance)
    }

    fn on_root(&mut self, root: u32, callback: impl FnOnce(&mut Instance)) {
        if let Some(instance) = self.instance_of(root).and_then(|index| self.instances.get_mut(index)) {
            callback(instance);
        }
    }

    fn on_stream(&mut self, context: u32, callback: impl FnOnce(&mut Instance, &mut Exchange)) {
        let Some(exchange) = self.streams.get_mut(context) else { return };
        if let Some(instance) = self.instances.get_mut(exchange.instance) {
            callback(instance, exchange);
        }
    }

    /// Continues requests that have waited, at the end of a callback about a request that was itself continued as `by`. Nothing else may be
    /// asked of the host afterwards: it takes it for one of these requests.
    fn resume(&mut self, by: Resumed) {
        if self.instances.iter().any(|instance| instance.worker.has_released()) {
            self.resume_released(by);
        }
    }

    #[inline(never)]
    fn resume_released(&mut self, by: Resumed) {
        let Some(resumed) = by.next(self.tick) else { return };
        let now = host::now();
        let Self { instances, streams, line, .. } = self;
        for instance in instances {
            for _ in 0..RESUMES_PER_CALLBACK {
                let Some(context) = instance.worker.next_released() else { break };
                let Some(exchange) = streams.get_mut(context) else { continue };
                if host::turn_to(context).is_ok() {
                    exchange.resume(&mut instance.worker, now, resumed, line);
                } else if let Some(exchange) = streams.remove(context) {
                    exchange.abandon(&mut instance.worker, now);
                }
            }
        }
    }

    fn configure(&mut self, root: u32, size: usize) -> Result<(), String> {
        let json = host::buffer(BufferKind::PluginConfiguration, 0, size).map_err(|error| format!("no configuration: {error:?}"))?;
        let (config, policies) = config::parse(&json)?;
        let index = match self.instances.iter().position(|instance| instance.name == config.instance) {
            Some(index) => index,
            None if self.instances.len() >= MAX_INSTANCES => return Err(format!("instance: the VM has {MAX_INSTANCES} others")),
            None => {
                self.instances.push(Instance::new(&config.instance)?);
                self.instances.len() - 1
            }
        };
        if self.roots.len() >= MAX_ROOTS {
            self.roots.remove(0);
        }
        self.roots.push(Root { id: root, plugin: plugin(), instance: index });
        self.on_root(root, |instance| instance.configure(root, &config, policies, &json));
        Ok(())
    }
}

/// Name and `root_id` of the plugin that the current callback is for.
fn plugin() -> Vec<u8> {
    ["plugin_name", "plugin_root_id"].map(|path| host::property(path).unwrap_or_default().to_vec()).join(&0)
}

/// A root context has a configuration of `size` bytes. False refuses it: the proxy answers its sender with a NACK.
pub(crate) fn on_configure(root: u32, size: usize) -> bool {
    match with(|vm| vm.configure(root, size)) {
        Some(Ok(())) => true,
        Some(Err(errors)) => {
            host::log(LogLevel::Error, &format!("headgate: configuration refused: {errors}"));
            false
        }
        None => false,
    }
}

/// Time has passed.
pub(crate) fn on_tick(root: u32) {
    with(|vm| {
        vm.tick = vm.tick.wrapping_add(1);
        vm.on_root(root, |instance| instance.on_tick(root));
        vm.resume(Resumed::default());
    });
}

/// A request's headers are there.
pub(crate) fn on_request_headers(context: u32) -> Action {
    with(|vm| {
        let index = vm.instance_of_request();
        let Some((index, instance)) = index.and_then(|index| Some((index, vm.instances.get_mut(index)?))) else {
            return Action::Continue;
        };
        let Some(exchange) = (if vm.streams.len() < MAX_STREAMS { vm.streams.vacant() } else { None }) else {
            instance.worker.count_untracked();
            return Action::Continue;
        };
        let now = host::now();
        instance.ensure_permits(now);
        let (is_open, action) = exchange.open(context, &mut instance.worker, &instance.reads, now, &mut vm.line);
        exchange.instance = index;
        if is_open {
            vm.streams.keep(context);
        }
        action
    })
    .unwrap_or(Action::Continue)
}

/// A piece of a response's body.
pub(crate) fn on_response_body(context: u32, len: usize, end_of_stream: bool) {
    with(|vm| {
        let mut resumed = Resumed::default();
        vm.on_stream(context, |instance, exchange| {
            exchange.on_response_body(&mut instance.worker, &instance.reads, len, end_of_stream);
            resumed = exchange.resumed;
        });
        vm.resume(resumed);
    });
}

/// A request is over. Envoy calls this once for every stream, and the access log reads what is set here.
pub(crate) fn on_log(context: u32) {
    with(|vm| {
        let Some(exchange) = vm.streams.remove(context) else { return };
        let Some(instance) = vm.instances.get_mut(exchange.instance) else { return };
        let resumed = exchange.resumed;
        exchange.on_log(&mut instance.worker, &instance.reads, &mut vm.line);
        vm.resume(resumed);
    });
}

/// A message came on a stream of this root.
pub(crate) fn on_grpc_receive(root: u32, token: u32, size: usize) {
    with(|vm| vm.on_root(root, |instance| instance.on_message(token, size)));
}

/// A stream of this root has ended.
pub(crate) fn on_grpc_close(root: u32, token: u32) {
    // Inside the close callback this frees the host's entry; later the token may belong to freed memory.
    let _ = host::close_stream(token);
    with(|vm| vm.on_root(root, |instance| instance.on_close(token)));
}
