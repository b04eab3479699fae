"""The zip archives that torch.save writes, found on a memory map and checked byte by byte.

Zip archives say everything twice: each record has a header of its own and an entry in the directory
at the end, and readers that believe different ones see different files. Here both must agree, and
records must be stored as they are, so that tensors can be viewed in place. Format: PKWARE APPNOTE
6.3.10, sections 4.3 to 4.5, zip64 included.
"""

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from convert.readers.names import is_plain, listed, shown
from janus_jax.errors import InputError

MAX_RECORDS = 100_000

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_DESCRIPTORS = (struct.Struct("<4s3I"), struct.Struct("<4sI2Q"))

_ENCRYPTED = 0x2041  # Bits 0, 6 and 13: encryption, strong encryption, masked headers.
_HAS_DESCRIPTOR = 0x0008
_UTF8 = 0x0800
_FULL_16 = 0xFFFF
_FULL_32 = 0xFFFFFFFF  # "See the zip64 extra field."
_AGAIN = "download the file again, or write it again with torch.save"


@dataclass(frozen=True)
class Record:
    """A stored record of an archive.

    Attributes:
        name: Its full name, such as `pytorch_model/data/0`.
        offset: Where its bytes begin, from the start of the file.
        size: How many there are.
        crc: CRC-32 that the archive gives for them.
    """

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class _Entry:
    """An entry of the directory: what it says of a record whose header begins at `header`."""

    name: str
    flags: int
    crc: int
    size: int
    header: int


def read_records(data: mmap.mmap, file: Path) -> dict[str, Record]:
    """Find and check every record of an archive that fills `data` from its first byte to its last.

    Args:
        data: The whole file.
        file: For messages.

    Returns:
        Records by full name, in the order of the directory.

    Raises:
        InputError: The archive is truncated or broken; or a record is compressed, encrypted, named
            twice, named like a way out of a folder, outside the file, overlapping another, or
            described differently in its two places.
    """
    return _Archive(data, file).records()


class _Archive:
    def __init__(self, data: mmap.mmap, file: Path):
        self.data = data
        self.file = file

    def records(self) -> dict[str, Record]:
        start, end, count = self._directory()
        entries = self._entries(start, end, count)
        _check_names([entry.name for entry in entries], self.file)
        records = {entry.name: self._record(entry, start) for entry in entries}
        self._check_overlaps(entries, records)
        return records

    def _refuse(self, reason: str, fix: str = _AGAIN) -> InputError:
        return InputError(f"{self.file}: {reason}", fix=fix)

    def _unpack(self, layout: struct.Struct, offset: int, end: int, what: str) -> tuple:
        if not 0 <= offset <= end - layout.size:
            raise self._refuse(f"the zip archive is broken: {what} lies outside the file")
        return layout.unpack_from(self.data, offset)

    def _directory(self) -> tuple[int, int, int]:
        """Start and end of the directory, and its number of entries."""
        end = len(self.data) - _END.size
        if end < 0 or self.data[end : end + 4] != b"PK\5\6":
            raise self._refuse("the file does not end as a zip archive does: it is truncated")
        _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(self.data, end)
        if comment:
            raise self._refuse("the zip archive has a comment, which torch.save does not write")
        said = (disk, first_disk, here, count, size, start)
        limits = (_FULL_16, _FULL_16, _FULL_16, _FULL_16, _FULL_32, _FULL_32)
        locator = end - _LOCATOR_64.size
        if locator >= 0 and self.data[locator : locator + 4] == b"PK\6\7":
            _, _, end_64, _ = _LOCATOR_64.unpack_from(self.data, locator)
            fields = self._unpack(_END_64, end_64, locator, "the zip64 end")
            signature, length, _, _, *full = fields
            if signature != b"PK\6\6" or end_64 + 12 + length != locator:
                raise self._refuse("the zip archive is broken: its zip64 end is misplaced")
            if any(a not in (b, m) for a, b, m in zip(said, full, limits, strict=True)):
                raise self._refuse("the two ends of the zip archive contradict each other")
            said, end = tuple(full), end_64
        disk, first_disk, here, count, size, start = said
        if disk or first_disk or here != count:
            raise self._refuse("the zip archive is split over several disks")
        if count > MAX_RECORDS:
            raise self._refuse(f"the zip archive has {count} records, more than {MAX_RECORDS}", "")
        if start + size != end:
            raise self._refuse("the zip directory does not lie just before the end of the archive")
        return start, end, count

    def _entries(self, start: int, end: int, count: int) -> list[_Entry]:
        entries = []
        at = start
        for _ in range(count):
            fields = self._unpack(_ENTRY, at, end, "an entry of the directory")
            signature, _, _, flags, method, _, _, crc, packed, size, *lengths = fields
            name_length, extra_length, comment, disk, _, _, header = lengths
            at += _ENTRY.size
            if signature != b"PK\1\2" or at + name_length + extra_length + comment > end:
                raise self._refuse("the zip archive is broken: its directory is damaged")
            name = self._name(self.data[at : at + name_length])
            extra = self.data[at + name_length : at + name_length + extra_length]
            at += name_length + extra_length + comment
            if flags & _ENCRYPTED:
                raise self._refuse(f"zip record {shown(name)} is encrypted", "")
            if method:
                raise self._refuse(
                    f"zip record {shown(name)} is compressed (method {method})",
                    "save the state_dict() with torch.save, which stores records as they are, "
                    "and not a TorchScript program",
                )
            if flags & ~(_HAS_DESCRIPTOR | _UTF8) or disk not in (0, _FULL_16):
                raise self._refuse(f"zip record {shown(name)} has unknown flags {flags:#x}")
            size, packed, header = self._widen((size, packed, header), extra, name)
            if size != packed:
                raise self._refuse(f"zip record {shown(name)} is stored, yet has two sizes")
            entries.append(_Entry(name, flags, crc, size, header))
        if at != end:
            raise self._refuse("the zip directory has bytes that no entry accounts for")
        return entries

    def _name(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self._refuse("a zip record has a name that is not UTF-8") from None

    def _widen(self, values: tuple[int, ...], extra: bytes, name: str) -> list[int]:
        """The values, those that are full taken from the zip64 extra field, in order."""
        wide = self._zip64(extra, name)
        widened = []
        for value in values:
            if value == _FULL_32:
                if len(wide) < 8:
                    raise self._refuse(f"zip record {shown(name)} lacks its zip64 sizes")
                value, wide = int.from_bytes(wide[:8], "little"), wide[8:]
            widened.append(value)
        return widened

    def _zip64(self, extra: bytes, name: str) -> bytes:
        """The zip64 extra field, empty where there is none; others, such as padding, are passed."""
        found = []
        at = 0
        while at < len(extra):
            head, end = (
                extra[at : at + 4],
                at + 4 + int.from_bytes(extra[at + 2 : at + 4], "little"),
            )
            if len(head) < 4 or end > len(extra):
                raise self._refuse(f"zip record {shown(name)} has a damaged extra field")
            if head[:2] == b"\1\0":
                found.append(extra[at + 4 : end])
            at = end
        if len(found) > 1:
            raise self._refuse(f"zip record {shown(name)} has two zip64 fields")
        return found[0] if found else b""

    def _record(self, entry: _Entry, directory: int) -> Record:
        """The record of an entry, after checking that its own header says the same."""
        fields = self._unpack(_LOCAL, entry.header, directory, f"record {shown(entry.name)}")
        signature, _, flags, method, _, _, crc, packed, size, name_length, extra_length = fields
        name_at = entry.header + _LOCAL.size
        offset = name_at + name_length + extra_length
        if signature != b"PK\3\4":
            raise self._refuse(f"zip record {shown(entry.name)} has no header of its own")
        if offset + entry.size > directory:
            raise self._refuse(f"zip record {shown(entry.name)} reaches outside the file")
        name = self.data[name_at : name_at + name_length]
        extra = self.data[name_at + name_length : offset]
        if name != entry.name.encode() or flags != entry.flags or method:
            raise self._refuse(f"zip record {shown(entry.name)} contradicts its own header")
        size, packed = self._widen((size, packed), extra, entry.name)
        # Written before the record was complete, a header leaves sizes and checksum at zero, and
        # the descriptor behind the record has them.
        postponed = flags & _HAS_DESCRIPTOR and not (size or packed or crc)
        if not postponed and (size, packed, crc) != (entry.size, entry.size, entry.crc):
            raise self._refuse(f"zip record {shown(entry.name)} contradicts its own header")
        if flags & _HAS_DESCRIPTOR and not self._descriptor_agrees(entry, offset, directory):
            raise self._refuse(f"zip record {shown(entry.name)} contradicts its descriptor")
        return Record(entry.name, offset, entry.size, entry.crc)

    def _descriptor_agrees(self, entry: _Entry, offset: int, directory: int) -> bool:
        expected = (b"PK\7\10", entry.crc, entry.size, entry.size)
        at = offset + entry.size
        return any(
            at + layout.size <= directory and layout.unpack_from(self.data, at) == expected
            for layout in _DESCRIPTORS
        )

    def _check_overlaps(self, entries: list[_Entry], records: dict[str, Record]) -> None:
        end = 0
        for entry in sorted(entries, key=lambda entry: entry.header):
            if entry.header < end:
                raise self._refuse(f"zip record {shown(entry.name)} overlaps another")
            end = records[entry.name].offset + entry.size


def _check_names(names: list[str], file: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{file}: zip records named twice: {listed(twice)}", fix=_AGAIN)
    tricks = [
        name
        for name in names
        if not is_plain(name) or "\\" in name or {"", ".", ".."} & set(name.split("/"))
    ]
    if tricks:
        raise InputError(f"{file}: zip records with unsafe names: {listed(tricks)}", fix=_AGAIN)
