"""What only the web speaks of: parameters of requests, and answers around the documents of `service.documents`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from search.part import Part
from search.trial import State
from service.documents import ArtifactDocument, EventDocument, JobDocument, LogLine, TrialDocument
from service.findings import Cost, Document
from service.grammar import LONGEST
from service.pictures import MOST_POINTS
from service.store.values import DeliveryState, Scope
from workers.events import Kind
from workers.ports import JobState, Level

PAGE_SIZE, LARGEST_PAGE = 50, 1000
BODY_BYTES = 256 * 1024
LONGEST_LIFE = 10 * 365 * 86_400
"""Seconds that a key may be good for, if not for ever."""
LONGEST_WAIT = 30.0
"""Seconds that a request may ask to be kept waiting."""


class Parameters(BaseModel):
    """Unknown ones are refused: `?valdate_only=true` must not submit a job."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Submission(Parameters):
    validate_only: bool = False
    """Check the job and answer with its plan; nothing is submitted."""


class Waiting(Parameters):
    wait: float = Field(0.0, ge=0, le=LONGEST_WAIT, allow_inf_nan=False)
    """Seconds to wait for the job's end before answering with whatever it is then."""


class Paging(Parameters):
    page_size: int = Field(PAGE_SIZE, ge=1)
    """At most 1000 are given, however many are asked for."""
    page_token: str = Field("", max_length=512)
    """The `next_page_token` of the page before."""

    @property
    def size(self) -> int:
        return min(self.page_size, LARGEST_PAGE)


class Sorting(Paging):
    """Of lists that can be filtered and ordered."""

    page_token: str = Field("", max_length=4096)
    """The `next_page_token` of the page before, with the same filter and order."""
    filter: str = Field("", max_length=LONGEST)
    """
    Only what it says, such as `state = FAILED AND labels.team = "vision"`:

    ```ebnf
    filter     = [ expression ] ;
    expression = term , ( { "AND" , term } | { "OR" , term } ) ;
    term       = "NOT" , term | "(" , expression , ")" | comparison ;
    comparison = field , ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) , value ;
    value      = number | text in quotes | word | time (RFC 3339) | "true" | "false" | "null" ;
    ```

    A field without a value satisfies `= null` and no other comparison but `!=`; `a != b` says the same as `NOT a = b`.
    """
    order_by: str = Field("", max_length=512)
    """Up to 4 fields with commas between, each with `desc` for the largest first; what has no value comes last."""


class JobPaging(Sorting):
    """
    Fields: `id`, `state`, `phase`, `priority`, `claims`, `created_at`, `started_at`, `ended_at`, `cancel_requested`,
    `teacher`, `dataset`, `strategy`, `labels.NAME`.
    """

    state: JobState | None = None
    """Only jobs in this state."""


class TrialPaging(Sorting):
    """
    Fields: `id`, `number`, `state`, `attempt`, `key`; of the last score `rung`, `step`, `accuracy`, `kl`, `seconds`,
    `cached`; `cost.NAME`, for which `macs`, `flops`, `params`, `weight_bytes`, `activation_bytes`, `latency` and
    `throughput` are short; `choices.SITE`, with quotes around a site that has dots.
    """

    state: State | None = None
    """Only trials in this state."""


class EventPaging(Parameters):
    after: int = Field(0, ge=0, le=2**53)
    """The `seq` of the last event already seen."""
    limit: int = Field(LARGEST_PAGE, ge=1)
    """At most 1000 are given, however many are asked for."""

    @property
    def size(self) -> int:
        return min(self.limit, LARGEST_PAGE)


class Axes(Parameters):
    x: str = Field("macs", pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """`accuracy`, `kl` or a cost, such as `macs`."""
    y: str = Field("accuracy", pattern=r"^[a-z][a-z0-9_]{0,63}$")
    """The same."""
    rung: int | None = Field(None, ge=0, le=100)
    """Compare the scores at this rung, 0 being the shortest training; without it, each trial's last."""


class AtRung(Parameters):
    rung: int = Field(0, ge=0, le=100)
    """Which scores: 0, the shortest training, is the one that all trials come to, whatever is thought of them then."""


class TimelinePaging(Parameters):
    after: int = Field(0, ge=0, le=2**31 - 1)
    """The `seq` of the last interval already seen."""
    limit: int = Field(MOST_POINTS, ge=1)
    """At most 2000 are given, however many are asked for."""

    @property
    def size(self) -> int:
        return min(self.limit, MOST_POINTS)


class LogPaging(Parameters):
    after: int = Field(0, ge=0, le=2**31 - 1)
    """The `seq` of the last line already seen."""
    limit: int = Field(LARGEST_PAGE, ge=1)
    """At most 1000 are given, however many are asked for."""
    trial: str | None = Field(None, pattern=r"^trial_[0-9a-z]{26}$")
    """Only lines about this trial."""
    level: Level = Level.DEBUG
    """Only lines of this level and above."""

    @property
    def size(self) -> int:
        return min(self.limit, LARGEST_PAGE)


class JobPage(Document):
    jobs: list[JobDocument]
    """Newest first, unless asked for otherwise."""
    next_page_token: str
    """Empty when this is the last page."""


class TrialPage(Document):
    trials: list[TrialDocument]
    """By number, unless asked for otherwise."""
    next_page_token: str
    """Empty when this is the last page."""


class EventPage(Document):
    events: list[EventDocument]
    next_after: int
    """What to give as `after` to get what happens next."""


class LogPage(Document):
    lines: list[LogLine]
    next_after: int
    """What to give as `after` to get what is logged next."""


class ArtifactList(Document):
    artifacts: list[ArtifactDocument]


class PlannedTeacher(Document):
    name: str
    cost: Cost


class PlannedDataset(Document):
    name: str
    classes: int
    shape: list[int]
    """Of one image: channels, height, width."""
    images: dict[str, int]
    """By split."""


class PlannedSpace(Document):
    key: str
    """Names the space: equal keys, equal spaces."""
    sites: int
    kinds: dict[str, int]
    """Sites by kind."""
    size: float
    """How many candidates it holds."""


class Share(Document):
    """How much of the space keeps a budget, by candidates drawn at random."""

    drawn: int
    fitting: int
    low: float
    high: float
    """Between `low` and `high`, 0..1, lies the share, with 95 % confidence."""


class PlannedStudent(Document):
    cost: Cost


class PlannedLevel(Document):
    """A budget of which it is proved that a student keeps it."""

    limits: Cost
    binding: str | None
    """The metric that most candidates miss by the largest factor, or come nearest to missing."""
    witness: PlannedStudent
    """A student that keeps it: the teacher narrowed evenly, where that is enough."""
    share: Share


class Expectation(Document):
    low: float
    expected: float
    high: float


class PlannedPhase(Expectation):
    """Seconds on the clock."""

    phase: str


class Estimate(Document):
    phases: list[PlannedPhase]
    seconds: Expectation
    """On the clock, all phases together."""
    unit: str
    """Of `cost`: `cpu-hours` or `gpu-hours`."""
    cost: Expectation
    basis: str
    """What was measured for it, and where."""


class PlannedModule(Document):
    """What can be done with a module of the teacher."""

    module: str
    status: str
    """`searchable`, `removable`, `frozen` or `unsupported`."""
    site: str | None
    """Where it is chosen."""
    reason: str
    """Why it stays as it is; empty when it does not."""
    where: str
    """The code that uses it: `package.module:line`."""


class Plan(Document):
    teacher: PlannedTeacher
    dataset: PlannedDataset
    space: PlannedSpace
    smallest: Cost
    """By metric the exact least value of any student in the space."""
    largest: Cost
    """By metric the exact largest."""
    limits: Cost
    """The budget, worked out: the whole number allowed of each metric. Of a ladder, its loosest level's."""
    levels: list[PlannedLevel]
    """
    Loosest first; one, unless the job is a ladder or has an accuracy to keep. Times are guessed, from the teacher
    and the least student timed on the server; the job measures more.
    """
    unmeasured: list[str]
    """Limited metrics that this server cannot measure; they are judged by the workers."""
    trials: int
    rungs: list[int]
    finalists: int
    estimate: Estimate
    report: list[PlannedModule]
    """In order of execution."""


class KeyRequest(Part):
    """A key to be made."""

    name: str = Field(min_length=1, max_length=100)
    """What it is for, for those who look at the list."""
    scope: Scope = Scope.SUBMIT
    """`read`, `submit` or `admin`; each is good for what those before it are."""
    expires_in_seconds: int | None = Field(None, ge=1, le=LONGEST_LIFE)
    """None for a key that is good until it is revoked."""


class KeyDocument(Document):
    id: str
    tenant: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """Within a minute."""


class NewKey(KeyDocument):
    key: str
    """The key itself. This answer is the only place where it is ever shown."""


class KeyPage(Document):
    keys: list[KeyDocument]
    """Newest first, with those that are revoked or over."""
    next_page_token: str
    """Empty when this is the last page."""


_ENDS = (Kind.JOB_SUCCEEDED, Kind.JOB_FAILED, Kind.JOB_CANCELLED)
_TOLD = tuple(kind for kind in Kind if kind.startswith("JOB_"))
JobKind = Annotated[str, Field(json_schema_extra={"enum": [str(kind) for kind in _TOLD]})]


class WebhookRequest(Part):
    """Where to be told of the tenant's jobs."""

    url: str = Field(min_length=1, max_length=2000)
    """Where letters are sent, by POST: `https://...`, at a host that the operator allows."""
    kinds: tuple[JobKind, ...] = Field(tuple(map(str, _ENDS)), min_length=1, max_length=len(_TOLD))
    """Of events to be told of; the ends of jobs if nothing is said."""

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in _TOLD:
                raise ValueError(f"`{kind[:64]}` is told by no webhook; those that are: {', '.join(_TOLD)}")
        if len(set(kinds)) < len(kinds):
            raise ValueError("a kind stands there twice; write each once")
        return kinds


class WebhookDocument(Document):
    id: str
    url: str
    kinds: list[str]
    created_at: datetime
    disabled_at: datetime | None
    """Since when nothing is sent any more, because the receiver answered 410."""


class NewWebhook(WebhookDocument):
    secret: str
    """What every letter is signed with. This answer is the only place where it is shown."""


class WebhookPage(Document):
    webhooks: list[WebhookDocument]
    """Newest first."""
    next_page_token: str
    """Empty when this is the last page."""


class DeliveryPaging(Paging):
    state: DeliveryState | None = None
    """Only those in this state."""


class DeliveryDocument(Document):
    id: str
    """The `webhook-id` of the letter, at every attempt."""
    webhook_id: str
    kind: str
    job_id: str | None
    """None, like `seq`, for a test."""
    seq: int | None
    state: DeliveryState
    created_at: datetime
    attempts: int
    next_at: datetime | None
    """When it is attempted next, if the attempt under way fails."""
    delivered_at: datetime | None
    dead_at: datetime | None
    """Since when it is not attempted any more."""
    status: int | None
    """Of the latest answer."""
    error: str
    """What went wrong at the latest attempt."""


class DeliveryPage(Document):
    deliveries: list[DeliveryDocument]
    """Newest first."""
    next_page_token: str
    """Empty when this is the last page."""


class AuditEntry(Document):
    id: str
    at: datetime
    actor: str
    """The id of the key; `settings` for that of STILLHOUSE_API_KEY, `shell:<user>` for a shell on the server."""
    action: str
    """The operation, as the API's description names it."""
    object: str
    request_id: str
    """As in the X-Request-Id of the answer."""


class AuditPage(Document):
    entries: list[AuditEntry]
    """Newest first."""
    next_page_token: str
    """Empty when this is the last page."""


class QuotaUse(Document):
    used: float
    limit: int | None
    """None for as much as there is."""


class Usage(Document):
    tenant: str
    quotas: dict[str, QuotaUse]
    """By quota; those of a day are of today in UTC."""


class CatalogEntry(Document):
    name: str
    summary: str
    options: dict[str, Any]
    """JSON schema of the options that a job may give."""


class CatalogPage(Document):
    kind: str
    entries: list[CatalogEntry]


class CatalogKinds(Document):
    kinds: dict[str, str]
    """Where each kind of plugin is described."""


class Limits(Document):
    body_bytes: int
    """Of a body of JSON."""
    upload_bytes: int
    """Of a file that is uploaded."""
    page_size: int
    wait_seconds: float
    event_streams: int
    check_seconds: float


class Server(Document):
    name: str
    version: str
    backend: str
    concurrent_jobs: int
    limits: Limits


class Health(Document):
    status: str


class Readiness(Document):
    status: str
    schema_version: str


class ProblemPage(Document):
    code: str
    status: int
    title: str
    remedy: str
    retryable: bool
