//! Reads what a wasm module imports and exports: enough to compare it with a capability list.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The functions at a module's border.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Imported functions, as `module.name`.
    pub imports: Vec<String>,
    /// Exported functions.
    pub exports: Vec<String>,
}

impl Interface {
    /// Reads a module file.
    ///
    /// # Errors
    /// When it cannot be read or is no wasm module.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is no wasm module", path.display()))
    }

    /// What a capability list must name: every imported function without its module, and every exported callback.
    #[must_use]
    pub fn capabilities(&self) -> Vec<String> {
        let imports = self.imports.iter().filter_map(|name| name.split_once('.')).map(|(_, name)| name.to_owned());
        let callbacks = self.exports.iter().filter(|name| name.starts_with("proxy_on_")).cloned();
        let mut all: Vec<String> = imports.chain(callbacks).collect();
        all.sort();
        all
    }

    // Source: https://webassembly.github.io/spec/core/binary/modules.html
    fn parse(bytes: &[u8]) -> Result<Self> {
        const IMPORTS: u8 = 2;
        const EXPORTS: u8 = 7;
        let mut module = Reader(bytes.strip_prefix(b"\0asm\x01\0\0\0").context("no wasm header")?);
        let mut found = Self::default();
        while !module.0.is_empty() {
            let id = module.byte()?;
            let size = module.number()?;
            let mut section = Reader(module.take(size)?);
            match id {
                IMPORTS => found.imports = section.imports()?,
                EXPORTS => found.exports = section.exports()?,
                _ => {}
            }
        }
        Ok(found)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        ensure!(size <= self.0.len(), "it is cut off");
        let (taken, rest) = self.0.split_at(size);
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// LEB128.
    fn number(&mut self) -> Result<usize> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        anyhow::bail!("a number is too long")
    }

    fn name(&mut self) -> Result<String> {
        let size = self.number()?;
        Ok(std::str::from_utf8(self.take(size)?)?.to_owned())
    }

    fn imports(&mut self) -> Result<Vec<String>> {
        let mut functions = Vec::new();
        for _ in 0..self.number()? {
            let name = format!("{}.{}", self.name()?, self.name()?);
            match self.byte()? {
                0 => {
                    self.number()?;
                    functions.push(name);
                }
                kind => self.skip_type(kind)?,
            }
        }
        Ok(functions)
    }

    /// Table, memory, global: not of interest, but in the way.
    fn skip_type(&mut self, kind: u8) -> Result<()> {
        if matches!(kind, 1 | 3) {
            self.byte()?;
        }
        if kind == 3 {
            self.byte()?;
            return Ok(());
        }
        let has_maximum = self.byte()? & 1 == 1;
        self.number()?;
        if has_maximum {
            self.number()?;
        }
        Ok(())
    }

    fn exports(&mut self) -> Result<Vec<String>> {
        let mut functions = Vec::new();
        for _ in 0..self.number()? {
            let name = self.name()?;
            let is_function = self.byte()? == 0;
            self.number()?;
            if is_function {
                functions.push(name);
            }
        }
        Ok(functions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_and_callbacks_become_capabilities() {
        let module = b"\0asm\x01\0\0\0\
            \x02\x18\x02\x03env\x09proxy_log\0\0\x01e\x01m\x02\x00\x01\
            \x07\x1a\x02\x0dproxy_on_tick\0\0\x06memory\x02\0";
        let found = Interface::parse(module).unwrap();
        assert_eq!(found.imports, ["env.proxy_log"]);
        assert_eq!(found.exports, ["proxy_on_tick"]);
        assert_eq!(found.capabilities(), ["proxy_log", "proxy_on_tick"]);
    }

    #[test]
    fn cut_off_module_is_an_error() {
        assert!(Interface::parse(b"\0asm\x01\0\0\0\x02\x7f").is_err());
    }
}
