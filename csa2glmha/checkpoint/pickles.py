"""Pickles of any protocol, rewritten in the one that PyTorch's restricted unpickler knows.

That unpickler (``torch.load(weights_only=True)``) knows protocol 2. Files of other protocols say the same in
other words, so the words are translated here, as data: nothing is looked up, called or built. What the
restricted unpickler then makes of them, and what it refuses, is as for any file.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

PROTOCOL = 2

#: Pickles at the beginning of files from before PyTorch 1.6: magic number, version, system, content, keys.
_LEGACY_PICKLES = 5
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")
_STORES = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT")
_LOOK_UPS = ("GET", "BINGET", "LONG_BINGET")
#: Opcodes with a plain counterpart. Sets are no weights: what holds their members in order stands for them.
_PLAIN = {
    "PROTO": pickle.PROTO + bytes([PROTOCOL]),
    "FRAME": b"",
    "EMPTY_SET": pickle.EMPTY_LIST,
    "ADDITEMS": pickle.APPENDS,
    "FROZENSET": pickle.TUPLE,
}


def pickle_protocol(head: bytes) -> int:
    """The protocol of a pickle by its first two bytes; those before 2 do not say theirs."""
    return head[1] if len(head) > 1 and head[:1] == pickle.PROTO else 0


def rewritten_archive(path: Path) -> BinaryIO | None:
    """A zip archive of torch.save with its pickle rewritten, in memory; None: it is protocol 2 already.

    Raises:
        pickle.UnpicklingError: the pickle cannot be translated.
        OSError, zipfile.BadZipFile: the archive cannot be read.
    """
    with zipfile.ZipFile(path) as source:
        pickles = {entry.filename: source.read(entry) for entry in source.infolist() if _is_pickle(entry)}
        if all(pickle_protocol(data) == PROTOCOL for data in pickles.values()):
            return None
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as target:
            for entry in source.infolist():
                if _is_pickle(entry):
                    data = rewrite(io.BytesIO(pickles[entry.filename]))
                else:
                    data = source.read(entry)
                target.writestr(entry.filename, data)
    whole.seek(0)
    return whole


def _is_pickle(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith("/data.pkl")


def rewritten_legacy(path: Path) -> BinaryIO | None:
    """As :func:`rewritten_archive`, for the layout from before PyTorch 1.6."""
    with path.open("rb") as file:
        if pickle_protocol(file.read(2)) == PROTOCOL:
            return None
        file.seek(0)
        pickles = [rewrite(file) for _ in range(_LEGACY_PICKLES)]
        # Behind the pickles stand the weights, byte for byte as before.
        return io.BytesIO(b"".join(pickles) + file.read())


def rewrite(file: BinaryIO) -> bytes:
    """One pickle, read from its first byte to its last, in protocol 2.

    Raises:
        pickle.UnpicklingError: it is damaged, or says what protocol 2 has no words for.
    """
    start = file.tell()
    try:
        opcodes = list(pickletools.genops(file))
        end = file.tell()
        file.seek(start)
        data = file.read(end - start)
        translator = _Translator()
        for index, (opcode, argument, position) in enumerate(opcodes):
            begin = (position or 0) - start
            following = opcodes[index + 1][2] if index + 1 < len(opcodes) else end
            translator.add(opcode.name, argument, data[begin : (following or 0) - start])
    except (ValueError, LookupError, TypeError, struct.error, OverflowError) as error:
        raise pickle.UnpicklingError(f"the pickle cannot be read: {error}") from error
    return b"".join(translator.parts)


@dataclass
class _Text:
    """A text that was just pushed: where its part begins, and under which keys the memo holds it."""

    text: str
    start: int
    keys: list[int] = field(default_factory=list)


class _Translator:
    """Translates opcode by opcode into ``parts``."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._memo: set[int] = set()
        #: Texts in the memo. Protocol 4 takes the names of a global from the stack, protocol 2 has them in
        #: the opcode: pushes of names are taken back, and the next look-up of such a name pushes it itself.
        self._texts: dict[int, str] = {}
        self._taken_back: set[int] = set()
        #: Texts on the top of the stack, with nothing in between.
        self._latest: list[_Text] = []

    def add(self, name: str, argument: object, raw: bytes) -> None:
        if name in _TEXTS:
            self._push(str(argument), _text(str(argument)))
        elif name in _STORES:
            self._store(len(self._memo) if name == "MEMOIZE" else int(str(argument)))
        elif name in _LOOK_UPS:
            self._look_up(int(str(argument)))
        elif name == "STACK_GLOBAL":
            self._name_global()
        else:
            self._latest = []
            self.parts.append(_other(name, argument, raw))

    def _push(self, text: str, part: bytes) -> None:
        self._latest = [*self._latest[-1:], _Text(text, len(self.parts))]
        self.parts.append(part)

    def _store(self, key: int) -> None:
        self._memo.add(key)
        self._taken_back.discard(key)
        self._texts.pop(key, None)
        if self._latest:
            self._texts[key] = self._latest[-1].text
            self._latest[-1].keys.append(key)
        self.parts.append(_put(key))

    def _look_up(self, key: int) -> None:
        if key not in self._texts:
            self._latest = []
            self.parts.append(_get(key))
            return
        text = self._texts[key]
        if key in self._taken_back:
            self._push(text, _text(text))
            self._store(key)
        else:
            self._push(text, _get(key))

    def _name_global(self) -> None:
        if len(self._latest) < 2:
            raise pickle.UnpicklingError("a global whose name is not plain text")
        module, name = self._latest
        if "\n" in module.text + name.text:
            raise pickle.UnpicklingError("a global whose name is not one line")
        del self.parts[module.start :]
        self._taken_back.update(module.keys, name.keys)
        self._latest = []
        self.parts.append(_global(module.text, name.text))


def _other(name: str, argument: object, raw: bytes) -> bytes:
    """Any opcode that has to do with neither texts nor the memo."""
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _BYTES:
        assert isinstance(argument, bytes)
        return _bytes(argument)
    if name == "BYTEARRAY8":
        assert isinstance(argument, bytearray)
        return _global("builtins", "bytearray") + _bytes(bytes(argument)) + pickle.TUPLE1 + pickle.REDUCE
    if name == "INT" and isinstance(argument, bool):
        return pickle.NEWTRUE if argument else pickle.NEWFALSE
    if name in ("INT", "LONG", "LONG4"):
        assert isinstance(argument, int)
        return _integer(argument)
    if name in ("NEWOBJ_EX", "NEXT_BUFFER", "READONLY_BUFFER"):
        raise pickle.UnpicklingError(f"it uses {name}, which weights do not need")
    return raw


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _bytes(data: bytes) -> bytes:
    # As protocol 2 writes them: bytes did not exist then.
    encoded = _text(data.decode("latin-1")) + _text("latin1") + pickle.TUPLE2
    return _global("_codecs", "encode") + encoded + pickle.REDUCE


def _integer(value: int) -> bytes:
    data = pickle.encode_long(value)
    if len(data) > 255:
        raise pickle.UnpicklingError("a number of more than 255 bytes")
    return pickle.LONG1 + bytes([len(data)]) + data


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _put(key: int) -> bytes:
    return pickle.LONG_BINPUT + struct.pack("<I", key)


def _get(key: int) -> bytes:
    return pickle.LONG_BINGET + struct.pack("<I", key)
