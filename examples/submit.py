"""Submits a job, watches it and takes the student home. Needs a server: `stillhouse serve`."""

from service.client import Client

SPEC = {
    "teacher": {"name": "small_resnet", "options": {"depth": 2, "width": 16}, "epochs": 8},
    "dataset": {"name": "digits"},
    "budget": {"macs": "25%", "params": "30%"},
    "space": {"divisor": 2},
    "search": {"trials": 12, "rungs": [30, 90]},
}


def main() -> None:
    with Client() as client:
        job = client.jobs.create(SPEC)
        for event in client.jobs.stream(job.id):
            print(event.seq, event.kind)
        job = client.jobs.wait(job.id)
        for verdict in job.student.verdicts:
            print(f"{verdict.metric}: {verdict.value:,} of at most {verdict.limit:,}")
        print(*client.jobs.pull(job.id, "student"), sep="\n")


if __name__ == "__main__":
    main()
