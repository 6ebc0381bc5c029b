#!/usr/bin/env python3
"""Writes tests/golden/schemas/pydantic.json: the JSON schemas that Pydantic makes of its ordinary types.

  pip install pydantic==2.14.* email-validator pydantic-extra-types && python3 tools/make_schema_golden.py

Each is what TypeAdapter(type).json_schema() gives, for validation. zod.json beside it was written by hand: the schemas that
Zod 4's documentation (zod.dev/json-schema, zod.dev/api) and its published converter give for its types.
"""
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import re
import typing
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union

import annotated_types
import pydantic
import typing_extensions
from pydantic import BaseModel, Field, TypeAdapter


class Colour(str, enum.Enum):
    red = "red"
    green = "green"


class Level(enum.IntEnum):
    low = 1
    high = 2


class Point(NamedTuple):
    x: float
    y: float


class Movie(typing_extensions.TypedDict, total=False):
    name: typing.Required[str]
    year: int


class Address(BaseModel):
    street: str
    city: Annotated[str, Field(min_length=1, max_length=40)]
    zip: Annotated[str, Field(pattern=r"^\d{5}(-\d{4})?$")]


class Person(BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    name: str = Field(description="as on the passport", examples=["Ada"])
    age: Annotated[int, Field(ge=0, le=150)]
    email: pydantic.EmailStr
    address: Optional[Address] = None
    tags: set[str] = set()
    scores: dict[str, float] = {}


class Node(BaseModel):
    value: int
    children: list["Node"] = []


class Open(BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: int


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


class Pet(BaseModel):
    pet: Union[Cat, Dog] = Field(discriminator="kind")


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: list[T]
    next: Optional[int]


class Names(BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=lambda name: name.replace("_", " ").title())
    first_name: str
    last_name: str


class Secret(BaseModel):
    model_config = pydantic.ConfigDict(json_schema_extra={"x-order": ["user", "password"], "markdownDescription": "*a*"})
    user: str = Field(json_schema_extra={"x-widget": "text"})
    password: pydantic.SecretStr


@pydantic.dataclasses.dataclass
class Box:
    width: Annotated[float, Field(gt=0)]
    height: Annotated[float, Field(gt=0, multiple_of=0.5)]


class Tree(pydantic.RootModel[dict[str, Union[int, "Tree"]]]):
    pass


TYPES = {
    "str": str, "int": int, "float": float, "bool": bool, "None": None, "Any": Any, "bytes": bytes, "object": object,
    "Decimal": decimal.Decimal, "Decimal with places": Annotated[decimal.Decimal, Field(max_digits=6, decimal_places=2)],
    "Fraction": fractions.Fraction, "complex": complex,
    "date": datetime.date, "time": datetime.time, "datetime": datetime.datetime, "timedelta": datetime.timedelta,
    "PastDate": pydantic.PastDate, "FutureDatetime": pydantic.FutureDatetime, "AwareDatetime": pydantic.AwareDatetime,
    "UUID": uuid.UUID, "UUID1": pydantic.UUID1, "UUID4": pydantic.UUID4, "UUID7": pydantic.UUID7,
    "Path": pathlib.Path, "FilePath": pydantic.FilePath, "DirectoryPath": pydantic.DirectoryPath,
    "IPv4Address": ipaddress.IPv4Address, "IPv6Address": ipaddress.IPv6Address, "IPv4Network": ipaddress.IPv4Network,
    "IPv6Interface": ipaddress.IPv6Interface, "IPvAnyAddress": pydantic.IPvAnyAddress,
    "AnyUrl": pydantic.AnyUrl, "HttpUrl": pydantic.HttpUrl, "PostgresDsn": pydantic.PostgresDsn,
    "EmailStr": pydantic.EmailStr, "NameEmail": pydantic.NameEmail, "SecretStr": pydantic.SecretStr,
    "SecretBytes": pydantic.SecretBytes, "Pattern": re.Pattern, "Json": pydantic.Json, "Json[list[int]]": pydantic.Json[list[int]],
    "JsonValue": pydantic.JsonValue, "ByteSize": pydantic.ByteSize, "Base64Str": pydantic.Base64Str,
    "Base64UrlBytes": pydantic.Base64UrlBytes, "ImportString": pydantic.ImportString,
    "StrictInt": pydantic.StrictInt, "PositiveInt": pydantic.PositiveInt, "NegativeFloat": pydantic.NegativeFloat,
    "NonNegativeInt": pydantic.NonNegativeInt, "FiniteFloat": pydantic.FiniteFloat,
    "int multiple of 5": Annotated[int, Field(multiple_of=5, ge=10, lt=200)],
    "float multiple of 0.25": Annotated[float, Field(multiple_of=0.25)],
    "int with both bounds": Annotated[int, Field(ge=3, gt=3, le=9, lt=12)],
    "str with pattern": Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")],
    "str with pattern and lengths": Annotated[str, Field(pattern=r"^[a-z]+( [a-z]+)*$", min_length=3, max_length=12)],
    "str with lengths": Annotated[str, annotated_types.Len(2, 8)],
    "Literal": Literal["a", 1, None, True], "StrEnum": Colour, "IntEnum": Level, "Optional[str]": Optional[str],
    "Union": Union[int, str, list[bool]], "list[int]": list[int], "list with lengths": Annotated[list[int], Field(min_length=1, max_length=4)],
    "tuple[int, str]": tuple[int, str], "tuple[int, ...]": tuple[int, ...], "set[int]": set[int],
    "set[Enum]": set[Colour], "frozenset[str]": frozenset[str], "set with lengths": Annotated[set[int], Field(min_length=1, max_length=3)],
    "dict": dict, "dict[str, int]": dict[str, int], "dict[int, str]": dict[int, str], "dict[Enum, int]": dict[Colour, int],
    "dict[Literal, int]": dict[Literal["a", "b"], int],
    "dict[constr, int]": dict[Annotated[str, Field(pattern=r"^[a-z]{2,5}$")], int], "dict[UUID, str]": dict[uuid.UUID, str],
    "dict with lengths": Annotated[dict[str, int], Field(min_length=1, max_length=3)], "dict[date, float]": dict[datetime.date, float],
    "NamedTuple": Point, "TypedDict": Movie, "BaseModel": Person, "recursive model": Node, "extra allow": Open,
    "discriminated union": Pet, "generic": Page[Address], "aliases": Names, "json_schema_extra": Secret, "dataclass": Box,
    "RootModel": Tree, "Sequence": typing.Sequence[int], "Iterable": typing.Iterable[str], "Mapping": typing.Mapping[str, bool],
    "deque": typing.Deque[int], "Never in a union": Union[int, typing.Never], "type with default": Annotated[int, Field(default=3)],
}


def main():
    schemas = []
    for name, one in TYPES.items():
        try:
            schemas.append({"name": "pydantic " + name, "schema": TypeAdapter(one).json_schema()})
        except pydantic.errors.PydanticUserError as error:
            print(f"{name}: pydantic makes no schema of it ({str(error).splitlines()[0]})")
    path = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/schemas/pydantic.json"
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in schemas) + "\n]\n")
    print(len(schemas), "schemas by pydantic", pydantic.VERSION)


if __name__ == "__main__":
    main()
