BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE artifacts (
	job_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	media_type TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 TEXT NOT NULL, 
	CONSTRAINT pk_artifacts PRIMARY KEY (job_id, name), 
	CONSTRAINT fk_artifacts_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "artifacts" VALUES('job_01m80bktmbaenf8cqw6ts041ny','student/weights.safetensors','application/octet-stream','jobs/1/w',12,'0000000000000000000000000000000000000000000000000000000000000000');
CREATE TABLE events (
	job_id TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	data JSON NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (job_id, seq), 
	CONSTRAINT fk_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',1,'JOB_QUEUED','{}',1795308513936000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',2,'JOB_CLAIMED','{"claim": 1}',1795308513946000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',3,'PHASE_ENTERED','{"phase": "teacher"}',1795308513953000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',4,'PHASE_FINISHED','{"phase": "teacher", "result": {"name": "small_resnet"}}',1795308513955000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',5,'PHASE_ENTERED','{"phase": "search"}',1795308513964000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',6,'TRIAL_PROPOSED','{"trial": "trial_01m80bktng2pkhsz43nn5wq8sd", "number": 0, "choices": {"a": 1}, "cost": {"macs": 10}}',1795308513970000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',7,'TRIAL_STARTED','{"trial": "trial_01m80bktng2pkhsz43nn5wq8sd", "number": 0, "rung": 0, "attempt": 1}',1795308513978000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',8,'TRIAL_SCORED','{"trial": "trial_01m80bktng2pkhsz43nn5wq8sd", "number": 0, "rung": 0, "step": 10, "accuracy": 0.5, "kl": 0.25, "cached": false, "last": true}',1795308513981000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',9,'PHASE_FINISHED','{"phase": "search", "result": {"finalists": ["trial_01m80bktng2pkhsz43nn5wq8sd"]}}',1795308513988000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',10,'ARTIFACT_KEPT','{"name": "student/weights.safetensors", "bytes": 12, "sha256": "0000000000000000000000000000000000000000000000000000000000000000"}',1795308513997000);
INSERT INTO "events" VALUES('job_01m80bktmbaenf8cqw6ts041ny',11,'JOB_SUCCEEDED','{"reason": ""}',1795308514003000);
INSERT INTO "events" VALUES('job_01m80bktpv48y5htt3hk2f4gts',1,'JOB_QUEUED','{}',1795308514013000);
INSERT INTO "events" VALUES('job_01m80bktpv48y5htt3hk2f4gts',2,'JOB_CLAIMED','{"claim": 1}',1795308514021000);
INSERT INTO "events" VALUES('job_01m80bktq732ymc427xz5se9n3',1,'JOB_QUEUED','{}',1795308514024000);
CREATE TABLE jobs (
	id TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	spec JSON NOT NULL, 
	priority INTEGER NOT NULL, 
	created_at BIGINT NOT NULL, 
	started_at BIGINT, 
	ended_at BIGINT, 
	cancel_requested_at BIGINT, 
	phase TEXT, 
	owner TEXT, 
	token INTEGER NOT NULL, 
	claims INTEGER NOT NULL, 
	fruitless INTEGER NOT NULL, 
	lease_until BIGINT, 
	events INTEGER NOT NULL, 
	idempotency_key TEXT, 
	fingerprint TEXT, 
	CONSTRAINT pk_jobs PRIMARY KEY (id), 
	CONSTRAINT uq_jobs_idempotency_key UNIQUE (idempotency_key), 
	CONSTRAINT ck_jobs_state CHECK (state IN ('QUEUED', 'PREPARING', 'RUNNING', 'FINALIZING', 'SUCCEEDED', 'FAILED', 'CANCELLED')), 
	CONSTRAINT ck_jobs_end CHECK ((ended_at IS NOT NULL) = (state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))), 
	CONSTRAINT ck_jobs_lease CHECK (ended_at IS NULL OR lease_until IS NULL)
);
INSERT INTO "jobs" VALUES('job_01m80bktmbaenf8cqw6ts041ny','SUCCEEDED','','{"version": 1, "teacher": {"name": "small_resnet", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "digits", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 5}',5,1795308513935000,1795308513946000,1795308514002000,NULL,'search','driver-1',1,1,0,NULL,11,'nightly','f1');
INSERT INTO "jobs" VALUES('job_01m80bktpv48y5htt3hk2f4gts','PREPARING','','{"version": 1, "teacher": {"name": "small_resnet", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "digits", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 1}',1,1795308514012000,1795308514020000,NULL,NULL,NULL,'driver-2',1,1,1,4795308514020000,2,'other','f2');
INSERT INTO "jobs" VALUES('job_01m80bktq732ymc427xz5se9n3','QUEUED','','{"version": 1, "teacher": {"name": "small_resnet", "options": {}, "weights": null, "epochs": 20, "training": {"batch_size": 64, "learning_rate": 0.1, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "dataset": {"name": "digits", "options": {}}, "budget": {"macs": "50%"}, "space": {"divisor": 8, "steps": 8, "min_keep": 0.125, "removal": true, "min_kernel": 3, "operators": [], "groups": false, "resolutions": [], "include": ["*"], "exclude": [], "blocks": []}, "search": {"strategy": {"name": "planned", "options": {}}, "weights": "library", "library": {"steps": 40, "coupled_steps": 20, "choices": 3, "batch_size": 128, "learning_rate": 0.002, "images": 256}, "elastic": {"steps": 600, "focus": 0.5, "every": 50, "training": {"batch_size": 64, "learning_rate": 0.03, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}}, "trials": 24, "rungs": [40, 120], "exempt": 0.1, "repeats": 2, "deterministic": false, "reduction": 3, "views": 4, "calibration_batches": 4, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null, "seed": 0}, "distill": {"name": "hinton", "options": {}}, "finalists": {"count": 2, "steps": 600, "checkpoint_every": 200, "training": {"batch_size": 64, "learning_rate": 0.05, "weight_decay": 0.0005, "warmup": 0.05, "drops": [], "drop": 0.1, "clip": 5.0}, "distill": null}, "export": {"onnx": true}, "resources": {"cpus_per_trial": 1, "gpus_per_trial": 0.0, "concurrent_trials": 2, "attempts": 3}, "labels": {}, "priority": 0}',0,1795308514024000,NULL,NULL,NULL,NULL,NULL,0,0,0,NULL,1,NULL,NULL);
CREATE TABLE phases (
	job_id TEXT NOT NULL, 
	phase TEXT NOT NULL, 
	started_at BIGINT NOT NULL, 
	ended_at BIGINT, 
	result JSON, 
	CONSTRAINT pk_phases PRIMARY KEY (job_id, phase), 
	CONSTRAINT fk_phases_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT ck_phases_result CHECK ((ended_at IS NULL) = (result IS NULL))
);
INSERT INTO "phases" VALUES('job_01m80bktmbaenf8cqw6ts041ny','teacher',1795308513952000,1795308513955000,'{"name": "small_resnet"}');
INSERT INTO "phases" VALUES('job_01m80bktmbaenf8cqw6ts041ny','search',1795308513964000,1795308513988000,'{"finalists": ["trial_01m80bktng2pkhsz43nn5wq8sd"]}');
CREATE TABLE scores (
	trial_id TEXT NOT NULL, 
	rung INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	accuracy FLOAT NOT NULL, 
	kl FLOAT NOT NULL, 
	seconds FLOAT NOT NULL, 
	at BIGINT NOT NULL, cached BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT pk_scores PRIMARY KEY (trial_id, rung), 
	CONSTRAINT fk_scores_trial_id FOREIGN KEY(trial_id) REFERENCES trials (id)
);
INSERT INTO "scores" VALUES('trial_01m80bktng2pkhsz43nn5wq8sd',0,10,0.5,0.25,1.5,1795308513980000,0);
CREATE TABLE trials (
	id TEXT NOT NULL, 
	job_id TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	choices JSON NOT NULL, 
	origin JSON NOT NULL, 
	cost JSON NOT NULL, 
	extra JSON, 
	state TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	reason TEXT NOT NULL, 
	CONSTRAINT pk_trials PRIMARY KEY (id), 
	CONSTRAINT fk_trials_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT uq_trials_job_id_number UNIQUE (job_id, number), 
	CONSTRAINT uq_trials_job_id_key UNIQUE (job_id, "key"), 
	CONSTRAINT ck_trials_state CHECK (state IN ('PENDING', 'RUNNING', 'COMPLETED', 'STOPPED', 'FAILED', 'CANCELLED'))
);
INSERT INTO "trials" VALUES('trial_01m80bktng2pkhsz43nn5wq8sd','job_01m80bktmbaenf8cqw6ts041ny',0,'key-a','{"a": 1}','{"a": 2}','{"macs": 10}',NULL,'COMPLETED',0,'');
CREATE INDEX ix_jobs_newest ON jobs (created_at, id);
CREATE INDEX ix_jobs_open ON jobs (priority, created_at, id) WHERE ended_at IS NULL;
COMMIT;
