//! A host for the built module: the proxy-wasm ABI as Envoy implements it, under an interpreter, with a clock that the test moves.
//!
//! Only what the module imports is here. Every effect is recorded for the test to compare; an import that is unknown answers
//! "unimplemented", as Envoy's stub for a function outside the capability list does.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, anyhow};
use wasmi::errors::LinkerError;
use wasmi::{AsContextMut, Caller, Engine, Extern, Func, Instance, Linker, Memory, Module, Store, Val, ValType};

const OK: i32 = 0;
const NOT_FOUND: i32 = 1;
const CAS_MISMATCH: i32 = 8;
const UNIMPLEMENTED: i32 = 12;

/// Header pairs as bytes.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// What the module did to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Set a request header.
    SetHeader(Vec<u8>, Vec<u8>),
    /// Removed a request header.
    RemoveHeader(Vec<u8>),
    /// Answered it.
    Reply {
        /// Status.
        status: u32,
        /// Response code details.
        details: Vec<u8>,
        /// Headers.
        headers: Pairs,
        /// Body.
        body: Vec<u8>,
    },
    /// Turned to another stream: what follows is about that.
    TurnTo(u32),
    /// Let a request go on that was held.
    Continue,
    /// Set a filter state.
    FilterState(Vec<u8>, Vec<u8>),
}

/// What the host knows; the test sets it before a callback and reads it after.
#[derive(Debug, Default)]
pub struct World {
    /// Monotonic time, in nanoseconds.
    pub now_ns: u64,
    /// What `random_get` fills its bytes from.
    pub random: u64,
    /// Headers of the request at hand.
    pub request_headers: Pairs,
    /// Headers of the response at hand.
    pub response_headers: Pairs,
    /// Buffer of the callback at hand.
    pub buffer: Vec<u8>,
    /// Properties by path, parts separated by NUL.
    pub properties: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Shared data: value and CAS number.
    pub shared: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    /// Effects since the test last took them.
    pub effects: Vec<Effect>,
    /// Lines that the module logged.
    pub log: Vec<String>,
    /// gRPC streams that the module opened: method by token.
    pub streams: BTreeMap<u32, String>,
    /// Messages that the module sent: token and bytes.
    pub sent: Vec<(u32, Vec<u8>)>,
    /// Calls of host functions that read, by name.
    pub reads: BTreeMap<&'static str, usize>,
    cas: u32,
    metrics: u32,
}

impl World {
    fn count(&mut self, name: &'static str) {
        *self.reads.entry(name).or_default() += 1;
    }
}

/// The module with its host.
pub struct WasmHost {
    store: Store<World>,
    instance: Instance,
    functions: HashMap<String, Func>,
}

impl WasmHost {
    /// Instantiates `module` in a world that begins with `random`.
    pub fn new(module: &[u8], random: u64) -> Result<Self> {
        let engine = Engine::default();
        let module = Module::new(&engine, module).map_err(|error| anyhow!("the module does not validate: {error}"))?;
        let mut store = Store::new(&engine, World { random, ..World::default() });
        let mut linker = Linker::new(&engine);
        define(&mut linker)?;
        for import in module.imports() {
            let Some(kind) = import.ty().func() else { continue };
            let unknown = Func::new(&mut store, kind.clone(), |_, _, results| {
                results.iter_mut().for_each(|result| *result = Val::I32(UNIMPLEMENTED));
                Ok(())
            });
            match linker.define(import.module(), import.name(), unknown) {
                // One of ours.
                Ok(_) | Err(LinkerError::DuplicateDefinition { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let instance = linker.instantiate_and_start(&mut store, &module).map_err(|error| anyhow!("instantiate: {error}"))?;
        Ok(Self { store, instance, functions: HashMap::new() })
    }

    /// The world around the module.
    pub fn world(&mut self) -> &mut World {
        self.store.data_mut()
    }

    /// Takes the effects recorded so far.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.world().effects)
    }

    /// Calls an export with integers; its integer result, or 0 when it has none. An error is a trap.
    pub fn call(&mut self, name: &str, arguments: &[u32]) -> Result<u32> {
        let function = match self.functions.get(name) {
            Some(function) => *function,
            None => {
                let function = self.instance.get_func(&self.store, name).with_context(|| format!("the module exports {name}"))?;
                self.functions.insert(name.to_owned(), function);
                function
            }
        };
        let arguments: Vec<Val> = arguments.iter().map(|argument| Val::I32(*argument as i32)).collect();
        let n_results = function.ty(&self.store).results().iter().filter(|kind| **kind == ValType::I32).count();
        let mut results = vec![Val::I32(0); n_results];
        function.call(&mut self.store, &arguments, &mut results).map_err(|error| anyhow!("{name} trapped: {error}"))?;
        Ok(results.first().and_then(Val::i32).unwrap_or(0) as u32)
    }
}

type Guest<'a> = Caller<'a, World>;

/// Defines every host function that a filter of ours imports.
fn define(linker: &mut Linker<World>) -> Result<()> {
    define_state(linker)?;
    define_requests(linker)?;
    define_streams(linker)?;
    linker.func_wrap("env", "proxy_log", |guest: Guest, _level: u32, data: u32, size: u32| {
        let mut guest = guest;
        let line = String::from_utf8_lossy(&read(&guest, data, size)).into_owned();
        guest.data_mut().log.push(line);
        OK
    })?;
    linker.func_wrap("env", "proxy_set_tick_period_milliseconds", |_: Guest, _period: u32| OK)?;
    linker.func_wrap("wasi_snapshot_preview1", "clock_time_get", |mut guest: Guest, _clock: u32, _precision: u64, at: u32| {
        guest.data_mut().count("clock");
        let now = guest.data().now_ns;
        write(&mut guest, at, &now.to_le_bytes());
        OK
    })?;
    linker.func_wrap("wasi_snapshot_preview1", "random_get", |mut guest: Guest, at: u32, size: u32| {
        let random = guest.data().random.to_le_bytes();
        let bytes: Vec<u8> = random.iter().copied().cycle().take(size as usize).collect();
        write(&mut guest, at, &bytes);
        OK
    })?;
    Ok(())
}

/// Shared data, properties, metrics.
fn define_state(linker: &mut Linker<World>) -> Result<()> {
    linker.func_wrap("env", "proxy_get_shared_data", |mut guest: Guest, key: u32, key_size: u32, data: u32, size: u32, cas: u32| {
        guest.data_mut().count("shared data");
        let key = read(&guest, key, key_size);
        let Some((value, number)) = guest.data().shared.get(&key).cloned() else { return NOT_FOUND };
        write(&mut guest, cas, &number.to_le_bytes());
        give(&mut guest, &value, data, size)
    })?;
    linker.func_wrap(
        "env",
        "proxy_set_shared_data",
        |mut guest: Guest, key: u32, key_size: u32, value: u32, value_size: u32, cas: u32| {
            let (key, value) = (read(&guest, key, key_size), read(&guest, value, value_size));
            let world = guest.data_mut();
            // As Envoy has it: a number that differs fails, a missing key is always stored.
            if cas != 0 && world.shared.get(&key).is_some_and(|(_, current)| *current != cas) {
                return CAS_MISMATCH;
            }
            world.cas += 1;
            let number = world.cas;
            world.shared.insert(key, (value, number));
            OK
        },
    )?;
    linker.func_wrap("env", "proxy_get_property", |mut guest: Guest, path: u32, path_size: u32, data: u32, size: u32| {
        guest.data_mut().count("property");
        let path = read(&guest, path, path_size);
        match guest.data().properties.get(&path).cloned() {
            Some(value) => give(&mut guest, &value, data, size),
            None => NOT_FOUND,
        }
    })?;
    linker.func_wrap("env", "proxy_set_property", |mut guest: Guest, path: u32, path_size: u32, value: u32, value_size: u32| {
        let effect = Effect::FilterState(read(&guest, path, path_size), read(&guest, value, value_size));
        guest.data_mut().effects.push(effect);
        OK
    })?;
    linker.func_wrap("env", "proxy_define_metric", |mut guest: Guest, _kind: u32, _name: u32, _size: u32, id: u32| {
        guest.data_mut().metrics += 1;
        let number = guest.data().metrics;
        write(&mut guest, id, &number.to_le_bytes());
        OK
    })?;
    linker.func_wrap("env", "proxy_increment_metric", |_: Guest, _id: u32, _offset: i64| OK)?;
    linker.func_wrap("env", "proxy_record_metric", |_: Guest, _id: u32, _value: u64| OK)?;
    Ok(())
}

/// gRPC streams; the test is their other end.
fn define_streams(linker: &mut Linker<World>) -> Result<()> {
    linker.func_wrap(
        "env",
        "proxy_grpc_stream",
        |mut guest: Guest, _: u32, _: u32, _: u32, _: u32, method: u32, method_size: u32, _: u32, _: u32, token: u32| {
            let method = String::from_utf8_lossy(&read(&guest, method, method_size)).into_owned();
            let number = guest.data().streams.len() as u32 + 1;
            guest.data_mut().streams.insert(number, method);
            write(&mut guest, token, &number.to_le_bytes());
            OK
        },
    )?;
    linker.func_wrap("env", "proxy_grpc_send", |mut guest: Guest, token: u32, message: u32, size: u32, _end: u32| {
        let message = read(&guest, message, size);
        guest.data_mut().sent.push((token, message));
        OK
    })?;
    Ok(())
}

/// Headers, buffers, local replies.
fn define_requests(linker: &mut Linker<World>) -> Result<()> {
    linker.func_wrap("env", "proxy_get_buffer_bytes", |mut guest: Guest, _kind: u32, start: u32, max: u32, data: u32, size: u32| {
        let bytes: Vec<u8> = guest.data().buffer.iter().skip(start as usize).take(max as usize).copied().collect();
        give(&mut guest, &bytes, data, size)
    })?;
    linker.func_wrap("env", "proxy_get_header_map_pairs", |mut guest: Guest, _map: u32, data: u32, size: u32| {
        guest.data_mut().count("headers");
        let bytes = serialize(&guest.data().request_headers);
        give(&mut guest, &bytes, data, size)
    })?;
    linker.func_wrap(
        "env",
        "proxy_get_header_map_value",
        |mut guest: Guest, _map: u32, key: u32, key_size: u32, data: u32, size: u32| {
            let key = read(&guest, key, key_size);
            match guest.data().response_headers.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone()) {
                Some(value) => give(&mut guest, &value, data, size),
                None => NOT_FOUND,
            }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_replace_header_map_value",
        |mut guest: Guest, _map: u32, key: u32, key_size: u32, value: u32, value_size: u32| {
            let effect = Effect::SetHeader(read(&guest, key, key_size), read(&guest, value, value_size));
            guest.data_mut().effects.push(effect);
            OK
        },
    )?;
    linker.func_wrap("env", "proxy_remove_header_map_value", |mut guest: Guest, _map: u32, key: u32, key_size: u32| {
        let effect = Effect::RemoveHeader(read(&guest, key, key_size));
        guest.data_mut().effects.push(effect);
        OK
    })?;
    linker.func_wrap("env", "proxy_set_effective_context", |mut guest: Guest, context: u32| {
        guest.data_mut().effects.push(Effect::TurnTo(context));
        OK
    })?;
    linker.func_wrap("env", "proxy_continue_stream", |mut guest: Guest, _kind: u32| {
        guest.data_mut().effects.push(Effect::Continue);
        OK
    })?;
    linker.func_wrap(
        "env",
        "proxy_send_local_response",
        |mut guest: Guest,
         status: u32,
         details: u32,
         details_size: u32,
         body: u32,
         body_size: u32,
         headers: u32,
         headers_size: u32,
         _grpc: i32| {
            let effect = Effect::Reply {
                status,
                details: read(&guest, details, details_size),
                headers: deserialize(&read(&guest, headers, headers_size)),
                body: read(&guest, body, body_size),
            };
            guest.data_mut().effects.push(effect);
            OK
        },
    )?;
    Ok(())
}

// === memory ===

fn memory(guest: &Guest) -> Memory {
    guest.get_export("memory").and_then(Extern::into_memory).expect("a module has its memory")
}

fn read(guest: &Guest, at: u32, size: u32) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    if size > 0 {
        memory(guest).read(guest, at as usize, &mut bytes).expect("the module points into its own memory");
    }
    bytes
}

fn write(guest: &mut Guest, at: u32, bytes: &[u8]) {
    let memory = memory(guest);
    memory.write(guest.as_context_mut(), at as usize, bytes).expect("the module points into its own memory");
}

/// Hands a value over in memory that the module allocates for it, as Envoy does.
fn give(guest: &mut Guest, bytes: &[u8], data: u32, size: u32) -> i32 {
    let malloc = guest.get_export("malloc").and_then(Extern::into_func).expect("the module exports malloc");
    let malloc = malloc.typed::<u32, u32>(&*guest).expect("malloc takes a size and returns an address");
    let at = malloc.call(guest.as_context_mut(), bytes.len() as u32).expect("malloc does not trap");
    write(guest, at, bytes);
    write(guest, data, &at.to_le_bytes());
    write(guest, size, &(bytes.len() as u32).to_le_bytes());
    OK
}

/// `count, (name length, value length)*, (name NUL value NUL)*`, all numbers u32 little-endian.
pub fn serialize(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((value.len() as u32).to_le_bytes());
    }
    for (name, value) in pairs {
        bytes.extend(name.iter().chain(&[0]).chain(value).chain(&[0]));
    }
    bytes
}

fn deserialize(bytes: &[u8]) -> Pairs {
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize;
    if bytes.is_empty() {
        return Vec::new();
    }
    let count = number(0);
    let mut at = 4 + 8 * count;
    let mut pairs = Vec::with_capacity(count);
    for index in 0..count {
        let (name, value) = (number(4 + 8 * index), number(8 + 8 * index));
        pairs.push((bytes[at..at + name].to_vec(), bytes[at + name + 1..at + name + 1 + value].to_vec()));
        at += name + value + 2;
    }
    pairs
}
